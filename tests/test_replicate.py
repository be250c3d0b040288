"""The replication: every sweep of the paper trains once, whatever stops it, and the card says what came of it."""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from quick import compile_quickly

import stability.replicate
from stability.analysis.claims import parse_claims
from stability.command_line import ConfigFolders, config_folders
from stability.launching import launch
from stability.launching.journal import RunJournal
from stability.replication.experiments import experiments
from stability.replication.figures import figure_of
from stability.replication.page import page
from stability.tracking.files import read_json, write_json
from stability.tracking.record import run_folders
from stability.training import lanes
from tests.conftest import Command, Outcome

ROOT = Path(__file__).parent.parent

LADDER = {
    "ladder": {
        "name": "tiny",
        "steps": 20,
        "batch_size": 2,
        "scales": {"w8": {"model.width": 8, "model.depth": 1, "model.head_dim": 8}},
        "series": {"main": ["w8"]},
        "learning_rates": {"main": [0.003, 0.3]},
    },
    "model": {"base_width": 8, "width": 8, "depth": 1, "head_dim": 8},
    "training": {
        "steps": "${ladder.steps}",
        "batch_size": "${ladder.batch_size}",
        "sequence_length": 8,
        "validation_sequences": 4,
        "precision": "float32",
    },
}
FIRST = {
    "question": "Does z-loss matter?",
    "source": "arXiv 2309.14322, Section 9.10, Figures 90 and E.91",
    "grids": {"main": {"loss.z_loss": [0.0001, 0.0], "optimizer.learning_rate": "${ladder.learning_rates.main}"}},
    "quantities": {"norm": {"metric": "optimizer/gradient_norm"}},
    "claims": {
        "with_is_better": {
            "kind": "quantity_below",
            "quantity": "loss",
            "arm": "z_loss=0.0001",
            "than": "z_loss=0.0",
            "paper": "z-loss | helps.",
        },
        "norms_are_bounded": {"kind": "quantity_within", "quantity": "norm", "at_most": 1e9, "arm": "z_loss=0.0"},
        "nobody": {"kind": "exceeds_only_in", "quantity": "norm", "threshold": 1e9, "runs": "unstable"},
    },
}
SECOND = {
    "question": "Do all learning rates train?",
    "source": "arXiv 2309.14322, Section 9.9, Figure 9",
    "grids": {"main": {"optimizer.learning_rate": [0.003, 0.3, 1.0]}},
    "claims": {"all_train": {"kind": "trains_at_every_learning_rate", "paper": "They do."}},
}
NOT_OF_THE_PAPER = {"question": "Is this ours?", "grids": {"main": {"seed": [0]}}}

THIRD = {
    "question": "And higher ones?",
    "source": "arXiv 2309.14322, Appendix E, Figure E.9",
    "grids": {"main": {"optimizer.learning_rate": [0.3, 3.0]}},
    "claims": {"all_train": {"kind": "trains_at_every_learning_rate"}},
}
NOT_IN_OLDER_CARDS = ("made_with", "tests")

_number = {"type": "number"}
_text = {"type": "string"}
_counts = {"type": "integer", "minimum": 0}


def _object(optional: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


_path = {"type": ["string", "null"]}
_cost = _object(runs=_counts, flops=_number, seconds=_number)
_made_with = {"type": "object", "additionalProperties": {"type": "array", "items": _text}}
SCHEMA = _object(
    schema_version={"const": 1},
    kind={"const": "replication"},
    card_version={"const": 1},
    paper={"const": "arXiv 2309.14322"},
    interval_level={"const": 0.9},
    ladders={
        "type": "object",
        "additionalProperties": _object(
            command=_text,
            seeds={"type": "array", "items": _counts},
            complete={"type": "boolean"},
            missing={"type": "array", "items": _text},
            cost=_cost,
            made_with=_made_with,
        ),
    },
    sweeps={
        "type": "array",
        "items": _object(
            name=_text,
            question=_text,
            source=_text,
            paper_figures={"type": "array", "items": _text},
            ladders={
                "type": "object",
                "additionalProperties": _object(
                    NOT_IN_OLDER_CARDS,
                    status={"enum": ["complete", "partial", "missing"]},
                    runs_planned=_counts,
                    cost=_cost,
                    seeds=_counts,
                    command=_text,
                    summary=_path,
                    figure=_path,
                    made_with=_made_with,
                    tests=_text,
                ),
            },
            claims={
                "type": "array",
                "items": _object(
                    name=_text,
                    kind=_text,
                    paper=_text,
                    ladders={
                        "type": "object",
                        "additionalProperties": _object(
                            verdict={"enum": ["holds", "fails", "undecided"]},
                            effect={"type": ["number", "null"]},
                            interval={"type": ["array", "null"], "items": _number, "minItems": 2, "maxItems": 2},
                            n=_counts,
                            measured=_text,
                            evidence=_text,
                            figure=_path,
                        ),
                    },
                ),
            },
        ),
    },
)


@pytest.fixture
def replicate(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Run `python -m stability.replicate ladder=tiny ARGUMENTS` in a folder whose three sweeps are the only ones."""
    for group in ("ladder", "sweep"):
        (tmp_path / "sweeps" / group).mkdir(parents=True)
    write(tmp_path / "sweeps/ladder/tiny.yaml", LADDER)
    for name, sweep in (("first", FIRST), ("second", SECOND), ("ours", NOT_OF_THE_PAPER)):
        write(tmp_path / f"sweeps/sweep/{name}.yaml", {"sweep": sweep})
    nothing = ConfigFolders(config_folders().conf, tmp_path / "nothing")
    monkeypatch.setattr(stability.replicate, "config_folders", lambda: nothing)
    monkeypatch.setattr(lanes, "compile_program", compile_quickly)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        before = list(sys.argv), list(sys.orig_argv)
        code = stability.replicate.main(["ladder=tiny", *arguments])
        assert (sys.argv, sys.orig_argv) == before
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(f"# @package _global_\n{yaml.safe_dump(content, sort_keys=False)}", encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_card() -> dict[str, Any]:
    card: dict[str, Any] = json.loads(Path("docs/replication.json").read_text())
    jsonschema.validate(card, SCHEMA)
    text = Path("docs/replication.md").read_text()
    assert text == page(card, "replication.json")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert Path("docs", target).is_file(), target
    return card


def statuses(card: Mapping[str, Any], ladder: str = "tiny") -> dict[str, str]:
    return {sweep["name"]: sweep["ladders"][ladder]["status"] for sweep in card["sweeps"]}


def test_it_goes_on_where_it_was_stopped_and_trains_nothing_twice(
    replicate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, stops = RunJournal.ended, []

    def then_stop(journal: RunJournal, **how: Any) -> None:
        ended(journal, **how)
        if not stops and len(run_folders(Path("results/replication/tiny/second"))) >= 3:
            stops.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(RunJournal, "ended", then_stop)
    stopped = replicate("seed=0,1")
    monkeypatch.setattr(RunJournal, "ended", ended)
    assert stopped.code == 130
    assert "Stopping after this step" in stopped.out
    assert "[1/2] second. All sweeps: 0 of 10 runs done" in stopped.out
    partial = read_card()
    assert statuses(partial) == {"second": "partial", "first": "missing"}, "in the order of the paper's sections"
    assert partial["ladders"]["tiny"]["missing"] == ["second", "first"]
    text = Path("docs/replication.md").read_text()
    assert "**Not complete.** Missing or partial: second, first." in text
    assert re.search(r"second: Do all|\(\d of 6 runs\)", text)
    assert "| not run yet |" in text

    planned = replicate("seed=0,1", "dry_run=true")
    assert planned.code == 0
    assert re.search(r"second +\d of 6 runs\nfirst +\d of 8 runs\n", planned.out)
    assert "training left" in planned.out

    done = replicate("seed=0,1")
    assert done.code == 0, done.err
    trained = [int(count) for count in re.findall(r"Trained (\d+) runs? in", stopped.out + done.out)]
    before = int(re.search(r"second: 6 runs, (\d) already done", done.out)[1])  # type: ignore[index]
    assert before + sum(trained) == 10, "6 of the one, and of the other's 8 the 4 that they do not share"
    assert "Took over 4 results" in done.out
    card = read_card()
    assert statuses(card) == {"second": "complete", "first": "complete"}
    assert card["ladders"]["tiny"]["complete"]
    assert card["ladders"]["tiny"]["cost"]["runs"] == 10
    assert [sweep["ladders"]["tiny"]["cost"]["runs"] for sweep in card["sweeps"]] == [6, 8]
    (all_train,) = card["sweeps"][0]["claims"]
    assert (all_train["paper"], all_train["ladders"]["tiny"]["n"]) == ("They do.", 6)
    better, bounded, nobody = card["sweeps"][1]["claims"]
    assert better["ladders"]["tiny"]["measured"].startswith("loss of 'z_loss=0.0' minus")
    assert bounded["ladders"]["tiny"]["figure"].endswith("first/analysis/quantity_norm.svg")
    assert (nobody["ladders"]["tiny"]["effect"], nobody["ladders"]["tiny"]["verdict"]) == (None, "undecided")
    assert card["sweeps"][1]["paper_figures"] == ["90", "E.91"]

    results, output = contents(Path("results")), contents(Path("docs"))
    again = replicate("seed=0,1")
    assert again.code == 0
    assert "Trained" not in again.out
    assert contents(Path("results")) == results, "complete results are only read"
    assert contents(Path("docs")) == output, "the same results make the same card"

    other = json.loads(json.dumps(card).replace('"tiny"', '"other"'))
    merged = {**card, "ladders": other["ladders"], "sweeps": other["sweeps"]}
    Path("docs/replication.json").write_text(json.dumps(merged))
    assert replicate("seed=0,1,2", "train=false").code == 0
    both = read_card()
    assert statuses(both) == {"second": "partial", "first": "partial"}, "a third seed is missing, and is not trained"
    assert statuses(both, "other") == {"second": "complete", "first": "complete"}
    assert "| claim | the paper | measured | other | tiny |" in Path("docs/replication.md").read_text()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the results of three sweeps and their card are kept from one test to the next."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def three(replicate: Command, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`replicate` with a third sweep; the results of all of them, seed 0, in the folder `all`, and their card."""
    write(Path("sweeps/sweep/third.yaml"), {"sweep": THIRD})
    if not any(shelf.iterdir()):
        programs = lanes.Programs()
        monkeypatch.setattr(launch, "KeptPrograms", lambda: programs)  # all three sweeps are of one structure
        monkeypatch.setattr(launch, "_analyse", lambda *_: None)  # a report that is not looked at
        assert replicate("seed=0", "results=all").code == 0
        for folder in ("all", "docs"):
            shutil.copytree(folder, shelf / folder)
    shutil.copytree(shelf, ".", dirs_exist_ok=True)
    return replicate


def take(folder: str, *sweeps: str) -> Path:
    """A machine that has the results of these sweeps."""
    for sweep in sweeps:
        shutil.copytree(Path("all", sweep), Path(folder, sweep))
    return Path(folder)


def recorded(*folders: Path) -> dict[str, float]:
    """Run -> seconds, of the folders in turn; of a run that several have, the first one's."""
    runs = [run for folder in folders for run in sorted(folder.glob("*/runs/*"))]
    return {run.name: json.loads((run / "summary.json").read_text())["seconds"] for run in reversed(runs)}


def test_a_card_from_two_machines_is_that_of_one_that_has_all_results(three: Command) -> None:
    one, cost = contents(Path("docs")), read_card()["ladders"]["tiny"]["cost"]
    assert cost["runs"] == len(recorded(Path("all"))) == 6
    assert cost["seconds"] == pytest.approx(sum(recorded(Path("all")).values()), abs=1e-3)

    shutil.rmtree("docs")
    for machine, sweeps, kept in (("a", ["first", "second"], []), ("b", ["second", "third"], ["first"])):
        take(machine, *sweeps)
        outcome = three("seed=0", "train=false", f"results={machine}")
        assert outcome.code == 0
        assert re.findall(r"(\w+) +kept as the card has it: 4 runs, none here", outcome.out) == kept
        assert f"Here: {4 if kept else 5} of 6 runs done" in outcome.out
        assert f"Card of {6 if kept else 5} runs: docs/replication.md" in outcome.out
        assert statuses(read_card())["third"] == ("complete" if kept else "missing")
    assert contents(Path("docs")) == one


def test_a_run_that_two_machines_trained_counts_once_and_as_it_first_came_into_the_card(three: Command) -> None:
    shutil.rmtree("docs")
    first, then = take("first", "second", "third"), take("then", "first", "second")
    for path in then.glob("*/runs/*/summary.json"):
        summary = read_json(path)
        write_json(path, {**summary, "seconds": summary["seconds"] + 100}, checksum=True)
    for machine in (first, then):
        assert three("seed=0", "train=false", f"results={machine}").code == 0
    card, seconds = read_card(), recorded(first, then)
    assert card["ladders"]["tiny"]["cost"]["seconds"] == pytest.approx(sum(seconds.values()), abs=0.01)
    assert 200 < sum(seconds.values()) < 300, "two of first's four runs are in no other sweep"
    parts = {sweep["name"]: sweep["ladders"]["tiny"] for sweep in card["sweeps"]}
    assert parts["second"]["cost"]["seconds"] > 300, "what its verdicts rest on trained on the second machine"


def second(**changes: Any) -> Callable[[], None]:
    """A change of the second sweep's file."""
    return lambda: write(Path("sweeps/sweep/second.yaml"), {"sweep": {**SECOND, **changes}})


def older_card() -> None:
    """Take the fields away that came later."""
    card = json.loads(CARD.read_text())
    for sweep in card["sweeps"]:
        for name in NOT_IN_OLDER_CARDS:
            del sweep["ladders"]["tiny"][name]
    CARD.write_text(json.dumps(card))


def two_of_three_runs_here() -> None:
    shutil.rmtree(min(take("here", "second").glob("second/runs/*")))


def rates(*learning_rates: float) -> dict[str, Any]:
    return {"main": {"optimizer.learning_rate": learning_rates}}


CARD = Path("docs/replication.json")
SUMMARY = Path("docs/replication/tiny/second/summary.json")
KEPT, OUT = "kept as the card has it: 3 runs, ", "taken out of the card: "
NO_SUMMARY = f"{OUT}its replication/tiny/second/summary.json is not there, or damaged"
OTHER_TESTS = f"{OUT}the sweep's claims or quantities have changed"
KIND = "trains_at_every_learning_rate"


@pytest.mark.parametrize(
    ("change", "seeds", "told", "status"),
    [
        pytest.param(lambda: None, "0", f"{KEPT}none here", "complete", id="no records"),
        pytest.param(two_of_three_runs_here, "0", f"{KEPT}2 here", "complete", id="fewer records"),
        pytest.param(
            second(claims={"all_train": {"kind": KIND, "paper": "They do."}}),
            "0",
            f"{KEPT}none here",
            "complete",
            id="the same sweep in other words",
        ),
        pytest.param(lambda: None, "0,1", f"{KEPT}none here", "partial", id="a seed more"),
        pytest.param(
            second(grids=rates(0.003, 0.3, 2.0)),
            "0",
            f"{OUT}it does not rest on the runs that the sweep plans now",
            "missing",
            id="another rate",
        ),
        pytest.param(
            second(claims={"all_train": {"kind": KIND, "tolerance": 0.2}}), "0", OTHER_TESTS, "missing", id="threshold"
        ),
        pytest.param(
            lambda: (older_card(), second(claims={"other": {"kind": KIND}})()),
            "0",
            OTHER_TESTS,
            "missing",
            id="another claim than that of an older card",
        ),
        pytest.param(lambda: shutil.rmtree(SUMMARY.parent), "0", NO_SUMMARY, "missing", id="deleted"),
        pytest.param(lambda: SUMMARY.write_text('{"schema_version": 1}'), "0", NO_SUMMARY, "missing", id="damaged"),
    ],
)
def test_a_part_is_kept_while_it_is_true_of_the_sweep(
    three: Command, change: Callable[[], object], seeds: str, told: str, status: str
) -> None:
    before, files = read_card(), contents(Path("docs"))
    change()
    outcome = three(f"seed={seeds}", "train=false", "results=here")
    assert outcome.code == 0, outcome.err
    assert re.findall(r"^second +(.*)$", outcome.out, re.MULTILINE) == [told]
    after = read_card()
    (part, claims), (old, old_claims) = (
        next((sweep["ladders"]["tiny"], sweep["claims"]) for sweep in card["sweeps"] if sweep["name"] == "second")
        for card in (after, before)
    )
    cost, whole = after["ladders"]["tiny"]["cost"], before["ladders"]["tiny"]["cost"]
    assert part["status"] == status
    if status == "complete":
        assert contents(Path("docs")) == files
    elif status == "partial":
        assert claims == old_claims
        assert {**part, "status": "complete", "runs_planned": 3, "command": old["command"]} == old
        assert cost == whole
    else:
        assert (part["cost"]["runs"], part["summary"], claims[0]["ladders"]) == (0, None, {})
        assert (cost["runs"], whole["runs"]) == (5, 6), "the others have all of its runs but one"
        for name in ("flops", "seconds"):
            assert cost[name] == pytest.approx(whole[name] * 5 / 6, rel=1e-2), "both have three digits"


def test_a_part_of_an_older_card_was_made_with_what_its_ladder_was(three: Command) -> None:
    expected = read_card()
    for sweep in expected["sweeps"]:
        sweep["ladders"]["tiny"]["made_with"] = expected["ladders"]["tiny"]["made_with"]
    older_card()
    for _ in range(2):
        assert three("seed=0", "train=false", "results=here").code == 0
        assert read_card() == expected


def test_forecasts_that_a_sweep_file_declares_later_are_made_too(three: Command) -> None:
    forecasts = {"beyond": {"quantity": "attention_logit_max", "threshold": 1e4, "factors": [2]}}
    write(Path("sweeps/sweep/third.yaml"), {"sweep": {**THIRD, "forecasts": forecasts}})
    take("here", "third")
    assert three("seed=0", "train=false", "results=here").code == 0
    (found,) = read_json(Path("docs/replication/tiny/third/summary.json"))["quantity_forecasts"]
    assert found["name"] == "beyond"


def test_a_card_does_not_lose_seeds(three: Command) -> None:
    before = contents(Path())
    outcome = three("seed=1", "train=false", "results=here")
    assert outcome.code == 2
    assert "seed=1: docs/replication.md tells of the ladder tiny with the seeds 0, and would lose some" in outcome.err
    assert contents(Path()) == before
    assert three("seed=1", "train=false", "results=here", "output=another.md").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep=first"], "sweep=first: there is no such key. Did you mean sweeps"),
        (
            ["sweeps=first,ours"],
            "sweeps=ours: is no sweep whose source is arXiv 2309.14322. Choose from: second, first.",
        ),
        (["ladder=none_such"], "ladder=none_such: is no ladder. Choose from: tiny."),
        (["seed=0,-1"], "seed"),
        (["seed="], "seed"),
        (["output=card.html"], "output=card.html: is no Markdown file"),
        (["results=a_file"], "results=a_file: a_file is not a folder"),
        (["output=a_file/card.md"], "output=a_file: a_file is not a folder"),
        (["micro"], "argument=micro: is not KEY=VALUE. Did you mean ladder=micro?"),
        (["results=another"], "output_dir=another/second: is not empty and holds no sweep of ours"),
        (["output=strange.md"], "strange.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_paragraph_and_nothing_is_written(replicate: Command, words: list[str], told: str) -> None:
    Path("a_file").touch()
    Path("another/second").mkdir(parents=True)
    Path("another/second/notes.txt").touch()
    Path("strange.json").write_text('{"schema_version": 1, "sweep": "x"}')
    before = contents(Path())
    outcome = replicate(*words)
    assert outcome.code == 2
    assert told in outcome.err
    assert contents(Path()) == before


def test_every_claim_of_the_papers_sweeps_says_what_the_paper_states() -> None:
    names = experiments([ROOT / "sweeps"])
    assert list(names)[:3] == ["qk_layernorm", "z_loss", "warmup"]
    assert list(names)[-1] == "rms_scaled_lr", "Figure E.14 comes after E.9"
    assert "quickstart" not in names
    for name in names:
        sweep = yaml.safe_load((ROOT / f"sweeps/sweep/{name}.yaml").read_text("utf-8"))["sweep"]
        for claim, content in sweep["claims"].items():
            assert content["paper"].endswith("."), f"{name}: {claim}"


def test_the_card_in_the_repository_is_of_the_sweeps_in_the_repository() -> None:
    text = (ROOT / "docs/replication.json").read_text("utf-8")
    card = json.loads(text)
    jsonschema.validate(card, SCHEMA)
    assert (ROOT / "docs/replication.md").read_text("utf-8") == page(card, "replication.json")
    for sweep in card["sweeps"]:
        content = yaml.safe_load((ROOT / f"sweeps/sweep/{sweep['name']}.yaml").read_text("utf-8"))["sweep"]
        assert (sweep["question"], sweep["source"]) == (content["question"], content["source"])
        stated = {claim["name"]: (claim["kind"], claim["paper"]) for claim in sweep["claims"]}
        assert stated == {name: (claim["kind"], claim["paper"]) for name, claim in content["claims"].items()}
    assert {sweep["name"] for sweep in card["sweeps"]} == set(experiments([ROOT / "sweeps"]))


@pytest.mark.parametrize(
    ("claim", "figure"),
    [
        ({"kind": "quantity_below", "quantity": "loss", "than": "b"}, "loss_by_learning_rate"),
        ({"kind": "quantity_rises", "quantity": "sensitivity", "along": "n_params"}, "sensitivity_by_n_params"),
        ({"kind": "grows_faster", "curve": {"quantity": "a b"}, "than": {"quantity": "loss"}}, "quantity_a_b"),
        (
            {"kind": "exceeds_only_in", "quantity": "attention_logit_max", "threshold": 1e4},
            "attention_logit_max_by_learning_rate",
        ),
        ({"kind": "best_learning_rate_falls"}, "loss_by_learning_rate"),
    ],
)
def test_a_claims_figure_shows_what_it_is_about(claim: dict[str, Any], figure: str) -> None:
    assert figure_of(parse_claims({"one": claim})["one"], ["a b"]) == figure
