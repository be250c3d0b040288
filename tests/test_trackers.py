"""What is not W&B's own: names, highlights, the workspace's panels, and a tracker that is one file of a user's."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
from conftest import TINY, Command
from hypothesis import given
from hypothesis import strategies as st

from stability.errors import InputError
from stability.tracking.highlights import EXTREMES, LIMITS, Highlights, first_step_above
from stability.tracking.names import SECTION_OF, SECTIONS, record_name, tracked_name
from stability.tracking.record import read_rows, run_folders
from stability.tracking.trackers import TRACKERS, find_tracker

DOCS = Path(__file__).parents[1] / "docs"
OBSERVED = re.findall(r"^\| `([a-z_]+/\S+)` \|", (DOCS / "observations.md").read_text(encoding="utf-8"), re.MULTILINE)


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_observation_is_in_a_section_and_maps_back() -> None:
    assert len(OBSERVED) > 30
    assert {tracked_name(name).split("/")[0] for name in OBSERVED} == set(SECTIONS)
    assert len({tracked_name(name) for name in OBSERVED}) == len(OBSERVED)
    assert [record_name(tracked_name(name)) for name in OBSERVED] == OBSERVED
    assert set(SECTION_OF) <= {name.split("/")[0] for name in OBSERVED}
    assert set(EXTREMES) | set(LIMITS) <= set(OBSERVED)


@given(st.lists(st.sampled_from([*SECTIONS, *SECTION_OF, "max", "step", "mine"]), min_size=1, max_size=3))
def test_a_name_of_anybodys_maps_back(parts: list[str]) -> None:
    name = "/".join(parts)
    if parts[0] not in SECTIONS:
        assert record_name(tracked_name(name)) == name


# --- highlights -------------------------------------------------------------------------------------------------------

VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@given(st.lists(VALUES, max_size=20))
def test_highlights_are_those_of_the_whole_run(values: list[float | None]) -> None:
    highlights = Highlights()
    for step, value in enumerate(values):
        highlights.add({"step": step, "attention_logit/max": value, "loss/train": value})
    found, finite = highlights.values, [value for value in values if value is not None and math.isfinite(value)]
    assert found.get("max/attention_logit/max") == max(finite, default=None)
    assert found.get("min/loss/train") == min(finite, default=None)
    for limit in LIMITS["attention_logit/max"]:
        above = [step for step, one in enumerate(values) if one is not None and math.isfinite(one) and one > limit]
        assert found.get(first_step_above("attention_logit/max", limit)) == min(above, default=None)


def test_a_limit_is_told_by_its_name() -> None:
    assert first_step_above("attention_logit/max", 1e4) == "first_step_above/attention_logit_max_1e4"


# --- trackers ---------------------------------------------------------------------------------------------------------

OWN = """
import json
from stability.tracking.tracker import NoTracker

class Notes(NoTracker):
    def __init__(self, settings):
        self.path = settings.folder / "notes.jsonl"
        self.note("settings", settings.project)

    def note(self, *words):
        with self.path.open("a") as file:
            file.write(json.dumps(words) + "\\n")

    def start(self, run):
        self.note("start", run.id, run.name)

    def log(self, run_id, row):
        self.note("log", run_id, row)

    def finish(self, run_id, summary):
        self.note("finish", run_id, summary["status"])

    def analysed(self, sweep):
        self.note("analysed", sweep.name, sorted(sweep.tables), len(sweep.tables["runs"]))

    def close(self):
        self.note("close")

    def closing_words(self):
        return [f"Notes: {self.path}"]
"""


def test_anyones_tracker_in_one_file_follows_a_sweep(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.py").write_text(OWN)
    (tmp_path / "conf" / "tracking").mkdir(parents=True)
    (tmp_path / "conf" / "tracking" / "notes.yaml").write_text("name: notes:Notes\nproject: mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = [word for word in TINY if word != "tracking=files"]
    # Observed at every step and evaluated between: rows ascend in step, whatever is read from the device when.
    grid = ["training.observe_every=1", "training.evaluate_every=10", "optimizer.learning_rate=0.01,0.1"]
    outcome = command("tracking=notes", *words, *grid, "output_dir=out")
    assert outcome.code == 0, outcome.err
    assert "Notes: out/notes.jsonl" in outcome.out.splitlines()
    noted = [json.loads(line) for line in (tmp_path / "out" / "notes.jsonl").read_text().splitlines()]
    folders = run_folders(tmp_path / "out")
    assert noted[0] == ["settings", "mine"]
    assert noted[-2][:2] == ["analysed", "out"]
    assert {"runs", "curves", "sensitivity", "claims"} <= set(noted[-2][2])
    assert noted[-2][3] == len(folders) == 2
    assert noted[-1] == ["close"]
    for folder in folders:
        (id_,) = {note[1] for note in noted if note[0] == "start" and note[1].startswith(folder.path.name[-16:])}
        rows = read_rows(folder.metrics)
        assert [note[2] for note in noted if note[:2] == ["log", id_]] == rows
        steps = [row["step"] for row in rows]
        assert steps == sorted(steps)
        assert ["finish", id_, "finished"] in noted
    sys.modules.pop("notes")


def test_a_tracker_that_there_is_not_is_refused_before_anything_is_written(command: Command, tmp_path: Path) -> None:
    outcome = command("tracking.name=wand", *[word for word in TINY if word != "tracking=files"], "output_dir=out")
    assert outcome.code == 2
    assert "tracking.name=wand: there is no such tracker. It is files, wandb, or MODULE:NAME" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing_here:Tracker", "cannot be imported"),
        ("json:Tracker", "cannot be imported"),
        ("json:__name__", "is nei"),
    ],
)
def test_a_tracker_that_cannot_be_imported_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_tracker(name, "auto")


def test_the_choices_in_the_configs_are_those_in_the_code() -> None:
    choices = {path.stem for path in (DOCS.parent / "conf" / "tracking").glob("*.yaml")}
    assert choices == TRACKERS.keys()
