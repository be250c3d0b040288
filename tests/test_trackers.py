"""What trackers share: names, highlights, and the one place that knows which there are."""

import math
import re
from pathlib import Path

import pytest
from conftest import TINY, Command
from hypothesis import given
from hypothesis import strategies as st

from stability.errors import InputError
from stability.tracking.highlights import EXTREMES, LIMITS, Highlights, first_step_above
from stability.tracking.names import SECTION_OF, SECTIONS, record_name, tracked_name
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
        ("json:__name__", "is neither"),
    ],
)
def test_a_tracker_that_cannot_be_imported_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_tracker(name, "auto")


def test_the_choices_in_the_configs_are_those_in_the_code() -> None:
    choices = {path.stem for path in (DOCS.parent / "conf" / "tracking").glob("*.yaml")}
    assert choices == TRACKERS.keys()
