"""The report: one page that holds everything, asks the network for nothing, and believes nothing that it is given."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pytest

from stability.analysis import analyze, figures, read, sensitivity
from stability.cache import cached
from stability.tracking import files, record

SCALES = {"w32": {"model.width": 32}, "w64": {"model.width": 64}}
RATES = (0.003, 0.03, 0.3)
ARMS = ("none", "per_head")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = """</script><script>window.broken=1</script><img src=x onerror="window.broken=1">'"&"""


def rows(rate: float, arm: str, *, diverges: bool) -> list[record.Row]:
    growth = rate * (30 if arm == "none" else 1)
    observed: list[record.Row] = [
        {
            "step": step,
            "loss/train": 5.0 - step / 40,
            "attention_logit/max": 3.0 * math.exp(growth * step / 10),
            "output_logit/log_z_mean": 5.0 + step * rate,
        }
        for step in range(0, 40 if diverges else 100, 10)
    ]
    return [{"step": 0, "loss/validation": 6.0}, *observed]


def make_sweep(folder: Path, question: str = "Does it hold?") -> Path:
    """Two arms, two sizes, three learning rates and two seeds; without the norm the highest rate diverges."""
    fingerprints = []
    for width, arm, rate, seed in ((w, a, r, s) for w in (32, 64) for a in ARMS for r in RATES for s in (0, 1)):
        fingerprint = f"{width}{arm}{rate}{seed}"
        fingerprints.append(fingerprint)
        diverges = (arm, rate) == ("none", 0.3)
        run = record.RunFolder(folder / "runs" / f"w{width}-{arm}-lr{rate}-seed{seed}")
        config = {
            "model": {"width": width, "depth": 2, "head_dim": 16, "mlp_ratio": 4, "qk_layernorm": arm},
            "optimizer": {"learning_rate": rate},
            "seed": seed,
            "data": {"seed": None},
        }
        run.begin(config, fingerprint, {"device": "2 CPU cores", "versions": {"jax": "0.10.2"}})
        story = rows(rate, arm, diverges=diverges)
        run.append(story)
        loss = None if diverges else 2.0 + 3 * rate + seed / 50 - width / 1000
        run.write_summary(
            {
                "fingerprint": fingerprint,
                "status": "diverged" if diverges else "finished",
                "n_params": 24 * width**2,
                "learning_rate": rate,
                "seed": seed,
                "data_seed": seed,
                "steps": 40 if diverges else 100,
                "loss_initial": 6.0,
                "loss_validation": loss,
                "attention_logit_max": story[-1]["attention_logit/max"],
            }
        )
    files.write_json(
        folder / "sweep.json",
        {
            "schema_version": 1,
            "sweep": folder.name,
            "question": question,
            "source": "arXiv 2309.14322, Figure 1",
            "ladder": "micro",
            "scales": SCALES,
            "runs": fingerprints,
            "quantities": {"early_logit": {"metric": "attention_logit/max", "at_step": 20}},
            "claims": {
                "lower_with": {
                    "kind": "sensitivity_below",
                    "arm": "qk_layernorm=per_head",
                    "than": "qk_layernorm=none",
                }
            },
            "commands": [{"time": "2026-01-01T00:00:00+00:00", "command": "python -m stability.run +sweep=demo"}],
        },
    )
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sweep(tmp_path_factory.mktemp("results") / "demo")
    analyze(folder, folder, figure_formats=["svg"])
    return folder


def text_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """What a browser would make of a page: its links, script elements and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []
        self.words = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self._in_script = tag in ("script", "style")
        self.scripts += tag == "script"
        self.handlers += [name for name in given if name.startswith("on")]
        for name in ("href", "src"):
            if name in given:
                self.links.append(str(given[name]))

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.words += f" {data}"


# --- histories --------------------------------------------------------------------------------------------------------

METRICS = ["attention_logit/max", "output_logit/log_z_mean"]


def test_a_history_is_of_the_rows_of_the_table(sweep: Path, tmp_path: Path) -> None:
    """Whatever the order in which folders and tables are read."""
    table = tmp_path / "steps.csv"
    lines = ["n_params,learning_rate,arm,step,loss,attention_logit/max"]
    lines += [f"{n},0.01,z,{step},{5 - step / 40},{n + step}" for n in (7000, 900) for step in (30, 10, 20, 0)]
    table.write_text("\n".join(lines))
    for sources in ([sweep], [table], [table, sweep], [sweep, table]):
        found = read(sources)
        history = found.history(METRICS, 1000)
        last = history.group_by("_run").agg(pl.col("attention_logit/max").last().alias("seen"), pl.col("step").last())
        runs = found.table.with_row_index("_run").cast({"_run": pl.Int64}).join(last, on="_run")
        assert len(runs) == found.table.height
        for run in runs.iter_rows(named=True):
            wanted = run["n_params"] + 30 if run["arm"] == "z" else run["attention_logit_max"]
            assert run["seen"] == pytest.approx(wanted)
            assert run["step"] == (30 if run["arm"] == "z" else 30 if run["status"] == "diverged" else 90)
        assert history["_run"].is_sorted()


@pytest.mark.parametrize("height", [1, 2, 3, 10, 11, 50, 1000])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_sample_is_spread_and_has_the_last_row(tmp_path: Path, height: int, count: int) -> None:
    run = record.RunFolder(tmp_path)
    tmp_path.joinpath("metrics.jsonl").touch()
    run.append({"step": step, "a": float(step), "filler": "x" * (step % 7)} for step in range(height))
    run.append([{"step": height, "loss/validation": 2.0}] * 3)
    with record.Metrics(run.metrics) as metrics:
        sample = metrics.sample(["a", "b"], count)
    steps = [row["step"] for row in sample]
    assert all(row == {"step": row["step"], "a": row["step"], "b": None} for row in sample)
    assert steps == sorted(set(steps))
    assert steps[-1] == height - 1
    assert len(steps) <= count
    assert len(steps) >= min(height, count) - 1
    widest = max((b - a for a, b in pairwise(steps)), default=0)
    assert widest <= 3 * height / count + 2
    table = tmp_path / "t.csv"
    table.write_text("n_params,learning_rate,step,loss\n" + "".join(f"10,0.1,{s},2\n" for s in range(height)))
    steps = read(table).history(["loss"], count)["step"].to_list()
    assert steps == sorted(set(steps))
    assert steps[-1] == height - 1
    assert min(height, count) - 1 <= len(steps) <= count


def test_a_history_without_its_metrics_is_empty(sweep: Path, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("n_params,learning_rate,loss\n10,0.1,2\n10,0.3,2\n")
    for source in (sweep, table):
        history = read(source).history(["no/such"], 10)
        assert history.is_empty()
        assert history.columns == ["_run", "step", "no/such"]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_everything_is_on_the_page(sweep: Path) -> None:
    text = text_of(sweep)
    words = re.sub(r"\s+", " ", Elements(text).words)
    for wanted in (
        "Does it hold?",
        "arXiv 2309.14322, Figure 1",
        "24 runs",
        "4 diverged",
        "lower with holds",
        "python -m stability.run +sweep=demo",
        "0.10.2",
        "2 CPU cores",
        "early logit",
        "0.03 (unstable from 0.3)",
    ):
        assert wanted in words, wanted
    drawn = [
        "loss_by_learning_rate",
        "sensitivity_by_n_params",
        "stable_edge_by_n_params",
        "attention_logit_max_by_learning_rate",
        "attention_logit_max_over_steps",
        "log_z_by_learning_rate",
        "log_z_over_steps",
        "quantity_early_logit",
    ]
    assert re.findall(r'data-figure="(\w+)"', text) == drawn
    assert {path.name for path in (sweep / "analysis").iterdir()} == {f"{name}.svg" for name in drawn}


def test_links_lead_to_files_and_records(sweep: Path, tmp_path: Path) -> None:
    moved = tmp_path / "else where #1"
    analyze(sweep, moved, figure_formats=["svg"])
    for folder in (sweep, moved):
        links = Elements(text_of(folder)).links
        assert len([link for link in links if "/runs/" in link or link.startswith("runs/")]) == 24
        for link in links:
            assert (folder / unquote(link)).exists(), link


def hostile_sweep(folder: Path) -> Path:
    """A sweep with hostile words wherever a manifest or a record may have words."""
    make_sweep(folder, question=HOSTILE)
    for manifest in folder.rglob("sweep.json"):
        content = json.loads(manifest.read_text())
        content["sweep"] = content["source"] = content["ladder"] = HOSTILE
        content["scales"] = {HOSTILE: SCALES["w32"], "w64": SCALES["w64"]}
        content["commands"][0]["command"] = HOSTILE
        content["quantities"] = {HOSTILE: {"metric": "loss/train"}}
        content["claims"] = {HOSTILE: content["claims"]["lower_with"] | {"paper": HOSTILE}}
        content["forecasts"] = {HOSTILE: {"quantity": HOSTILE, "n_params": [1e6]}}
        manifest.write_text(json.dumps(content))
    for file in (*folder.rglob("config.json"), *folder.rglob("provenance.json")):
        text = file.read_text().replace('"none"', json.dumps(HOSTILE)).replace('"0.10.2"', json.dumps(HOSTILE))
        content = json.loads(text.replace('"2 CPU cores"', json.dumps(HOSTILE)))
        file.write_text(json.dumps({key: value for key, value in content.items() if key != "sha256"}))
    return folder


def hostile_table(table: Path) -> Path:
    """A table with hostile words in its header and its cells."""
    cells = {"n_params": [10, 20], "learning_rate": [0.1, 0.1], "loss": [2.0, 2.0], "arm": [HOSTILE, "b"]}
    columns = [HOSTILE, "../../outside", "a/b", "a b", ".", "x" * 300, *(f"column {i}" for i in range(20))]
    scale = {"scale": [HOSTILE, "s"], "text": [HOSTILE, "no number"]}
    pl.DataFrame({**cells, **scale, **{name: [1.0, 2.0] for name in columns}}).write_csv(table)
    return table


def test_nothing_hostile_survives(tmp_path: Path) -> None:
    folder, table = hostile_sweep(tmp_path / "hostile"), hostile_table(tmp_path / "hostile.csv")
    before = set(tmp_path.rglob("*"))
    for source in (folder, table):
        analyze(source, tmp_path / "out" / source.name, figure_formats=["svg"])
        made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert all(path.is_relative_to(tmp_path / "out") for path in made)
        text = text_of(tmp_path / "out" / source.name)
        elements = Elements(text)
        assert (elements.scripts, elements.handlers) == (3, [])
        assert "window.broken=1" in elements.words, "shown as text"
        for figure in re.findall(r'data-figure="([^"]*)"', text):
            assert (tmp_path / "out" / source.name / "analysis" / f"{figure}.svg").is_file()
        assert "<img" not in text.split("<body>")[1].split('<script type="application/json"')[0]


def test_a_report_of_nothing(tmp_path: Path) -> None:
    files.write_json(
        tmp_path / "sweep.json", {"schema_version": 1, "sweep": "none", "question": "?", "scales": {}, "runs": ["a"]}
    )
    analyze(tmp_path, tmp_path)
    assert "No run has a result yet" in text_of(tmp_path)
    assert list((tmp_path / "analysis").iterdir()) == []


def test_hiding_is_possible_in_every_figure(sweep: Path) -> None:
    found = read(sweep)
    summary = json.loads((sweep / "summary.json").read_text())
    for figure in figures.all_figures(found, sensitivity(found.table), summary):
        assert figure.chart is not None
        spec = figures.specification(figure.chart)
        assert {"hidden_arms", "hidden_scales"} <= {param["name"] for param in spec["params"]}, figure.name


def test_what_is_cached_is_made_once_and_is_never_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"content"

    assert [cached("name.js", make) for _ in range(3)] == [b"content"] * 3
    assert len(made) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached("name.js", make) == b"content"


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as which containers run, may not use Chromium's sandbox; the page is our own.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page and waits until it is drawn; afterwards nothing may have complained or asked the network."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def open_page(path: Path) -> Any:
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=60_000)
        return tab

    yield open_page
    context.close()
    assert complaints == []


def marks(tab: Any, figure: str) -> int:
    """How many points and bars a figure shows."""
    count: int = tab.evaluate(
        """(name) => {
            const isMark = (item) => ["symbol", "rule"].includes(item.marktype) && String(item.name).includes("marks");
            const count = (item) => (item.items ?? []).reduce(
                (sum, one) => sum + count(one), isMark(item) ? item.items.length : 0);
            return count(window.reportViews.get(name).scenegraph().root);
        }""",
        figure,
    )
    return count


def test_every_figure_is_drawn_and_reacts(opened: Any, sweep: Path) -> None:
    tab = opened(sweep / "report.html")
    names = tab.eval_on_selector_all(".chart", "all => all.map(one => one.dataset.figure)")
    assert len(names) == 8
    for name in names:
        box = tab.locator(f'.chart[data-figure="{name}"] canvas').bounding_box()
        assert box is not None, name
        assert box["width"] > 300, name
        assert tab.locator(f'.chart[data-figure="{name}"].broken').count() == 0
        assert marks(tab, name) > 0, name

    before = {name: marks(tab, name) for name in names}
    tab.uncheck('input[data-arm="qk_layernorm=none"]')
    tab.wait_for_function("document.getElementById('shown').textContent === '12 shown'")
    tab.wait_for_timeout(300)
    assert all(marks(tab, name) < before[name] for name in names), "every figure leaves the arm out"
    tab.check('input[data-arm="qk_layernorm=none"]')
    tab.uncheck('input[data-scale="w64"]')
    tab.wait_for_timeout(300)
    assert marks(tab, "loss_by_learning_rate") == before["loss_by_learning_rate"] / 2
    assert marks(tab, "stable_edge_by_n_params") == before["stable_edge_by_n_params"] / 2
    tab.check('input[data-scale="w64"]')
    tab.fill("#filter", "w32 diverged")
    assert tab.inner_text("#shown") == "2 shown"


def test_a_pointer_finds_a_run(opened: Any, sweep: Path) -> None:
    tab = opened(sweep / "report.html")
    chart = tab.locator('.chart[data-figure="loss_by_learning_rate"] canvas')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    found = False
    for x in range(60, int(box["width"]) - 40, 12):
        for y in range(60, int(box["height"]) - 40, 12):
            tab.mouse.move(box["x"] + x, box["y"] + y)
            if found := tab.locator("#vg-tooltip-element.visible").count() > 0:
                break
        if found:
            break
    assert found, "no point under the pointer anywhere"
    told = tab.inner_text("#vg-tooltip-element")
    for word in ("arm", "learning rate", "seed", "status", "loss"):
        assert word in told


def test_the_table_of_runs_is_sorted_by_a_click(opened: Any, sweep: Path) -> None:
    tab = opened(sweep / "report.html")
    losses = "#runs tbody td:nth-child(7)"
    tab.click("#runs th:nth-child(7)")
    rising = [float(text) for text in tab.locator(losses).all_inner_texts() if text != "-"]
    assert rising == sorted(rising)
    tab.click("#runs th:nth-child(7)")
    texts = tab.locator(losses).all_inner_texts()
    falling = [float(text) for text in texts if text != "-"]
    assert falling == sorted(falling, reverse=True)
    assert texts[-4:] == ["-"] * 4, "what is not known comes last"


@pytest.mark.parametrize("make", [hostile_sweep, pytest.param(hostile_table, marks=pytest.mark.slow)])
def test_hostile_names_do_nothing_in_a_browser(make: Any, opened: Any, tmp_path: Path) -> None:
    analyze(make(tmp_path / "hostile.csv"), tmp_path / "out", figure_formats=())
    tab = opened(tmp_path / "out" / "report.html")
    assert HOSTILE in tab.inner_text("body"), "shown as words"
    for box in tab.locator(".controls input").all():
        box.uncheck()
        box.check()
    for header in tab.locator(".sortable th").all()[:4]:
        header.click()
    tab.fill("#filter", HOSTILE)
    chart = tab.locator(".chart canvas").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    for x in range(40, int(box["width"]), 15):
        for y in range(40, int(box["height"]), 25):
            tab.mouse.move(box["x"] + x, box["y"] + y)  # what a tooltip says is theirs, too
    assert tab.locator("script").count() == 3
    assert tab.locator("img, iframe, object, [onerror], [onload], [onclick]").count() == 0
    assert tab.evaluate("window.broken") is None
