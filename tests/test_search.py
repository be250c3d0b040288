"""The stable edge by a search: the bracket that the whole grid gives, with fewer runs, and resumable at any point."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import compile_quickly

from stability.analysis import max_stable_learning_rate
from stability.errors import InputError
from stability.launching import campaign
from stability.launching.search import cost, first_rates, known, next_rates, visited
from stability.launching.searched import searched_points
from stability.status import main as status
from stability.training import lanes
from tests.conftest import TINY, Command, Outcome
from tests.test_grid import rates, request
from tests.worlds import Arm, world

KEY = "optimizer.learning_rate"


# --- the grid of a searched axis --------------------------------------------------------------------------------------


def points(low: float, high: float, tolerance: float) -> list[float]:
    return searched_points(KEY, {"search": "bisection", "low": low, "high": high, "tolerance": tolerance})


@given(st.floats(1e-6, 1.0), st.floats(1.001, 1e5), st.floats(1.05, 100.0))
@settings(max_examples=60)
def test_the_grid_has_both_ends_and_no_gap_above_the_tolerance(low: float, ratio: float, tolerance: float) -> None:
    found = points(low, low * ratio, tolerance)
    assert (found[0], found[-1]) == (low, low * ratio)
    gaps = [b / a for a, b in itertools.pairwise(found)]
    assert all(1 < gap <= tolerance * (1 + 1e-9) for gap in gaps)
    assert all(rate == float(f"{rate:.3g}") for rate in found[1:-1])


def test_a_grid_that_divides_evenly_is_the_one_that_people_would_write() -> None:
    assert points(0.01, 0.16, 2.0) == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert points(0.1, 0.11, 2.0) == [0.1, 0.11]


SEARCH = {"search": "bisection", "low": 0.01, "high": 0.16, "tolerance": 2.0}


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"search": "golden"}, "search", "bisection"),
        ({"low": 0}, "low", "greater than 0"),
        ({"low": 0.16}, "low", "not below high=0.16"),
        ({"high": "much"}, "high", "number"),
        ({"tolerance": 1.0}, "tolerance", "below 1.05"),
        ({"tolerence": 2.0}, "tolerence", "no such key"),
        ({"tolerance": None}, "tolerance", "number"),
    ],
)
def test_a_bad_search_is_refused_by_its_key(change: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        request({"main": {KEY: {**SEARCH, **change}}})
    assert caught.value.key == f"sweep.grids.main.{KEY}.{key}"
    assert words in str(caught.value)


def test_nothing_but_the_learning_rate_is_searched() -> None:
    with pytest.raises(InputError, match="cannot be searched") as caught:
        request({"main": {"optimizer.weight_decay": SEARCH}})
    assert caught.value.key == "sweep.grids.main.optimizer.weight_decay"


def test_a_searched_axis_is_its_grid_until_something_else_takes_its_place() -> None:
    grid = {"main": {KEY: SEARCH, "seed": [0, 1]}}
    found = request(grid)
    assert sorted(set(rates(found))) == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert found.searched == set(found.configs)
    assert not request(grid, axes={KEY: [0.1, 0.2]}).searched
    assert not request(grid, fixed={KEY: 0.1}).searched
    assert request({"main": {KEY: [0.5], "seed": [0]}}, fixed={KEY: SEARCH}).searched == {
        config for config in found.configs if config.seed == 0
    }


def test_a_run_that_another_grid_lists_is_trained_in_any_case() -> None:
    found = request({"searched": {KEY: SEARCH}, "listed": {KEY: [0.02, 0.5]}})
    assert {config.optimizer.learning_rate for config in found.searched} == {0.01, 0.04, 0.08, 0.16}
    assert len(found.configs) == 6


# --- one cell ---------------------------------------------------------------------------------------------------------


def table_of(learning_rates: Sequence[float], losses: Sequence[float | None]) -> pl.DataFrame:
    """One cell of one seed; None is a run that diverged."""
    count = len(learning_rates)
    return pl.DataFrame(
        {
            "arm": ["default"] * count,
            "scale": ["s0"] * count,
            "n_params": [1000] * count,
            "learning_rate": learning_rates,
            "seed": [0] * count,
            "status": ["finished" if loss is not None else "diverged" for loss in losses],
            "loss_initial": [6.0] * count,
            "loss_validation": losses,
        },
        schema_overrides={"loss_validation": pl.Float64},
    )


def bracket(table: pl.DataFrame) -> tuple[float | None, float | None]:
    row = max_stable_learning_rate(table).row(0, named=True)
    return row["lower"], row["upper"]


def searched(table: pl.DataFrame) -> list[float]:
    """What a search on a cell's grid trains."""
    grid = sorted(set(table["learning_rate"]))
    return visited(grid, lambda done: known(table.filter(pl.col("learning_rate").is_in(list(done)))))


@st.composite
def curves(draw: st.DrawFn) -> tuple[list[float], list[float | None]]:
    """A bowl, then losses that rise by any amounts, at last perhaps divergence; 13 points or more."""
    count = draw(st.integers(13, 40))
    grid = np.geomspace(0.003, 1.0, count)
    best, edge = sorted(draw(st.tuples(st.floats(-6.5, 0.5), st.floats(-6.0, 1.0))))
    losses = 2.0 + draw(st.floats(0.0, 0.1)) * (np.log(grid) - best) ** 2
    rises = draw(st.lists(st.floats(0.0, 0.4), min_size=count, max_size=count))
    losses += np.cumsum(np.where(np.log(grid) > edge, rises, 0.0))
    survivors = draw(st.integers(1, 2 * count))
    return grid.tolist(), [loss if i < survivors else None for i, loss in enumerate(losses.tolist())]


@given(curves())
@settings(max_examples=25)
def test_where_losses_rise_beyond_the_best_the_search_finds_the_grid_s_own_bracket(
    curve: tuple[list[float], list[float | None]],
) -> None:
    table = table_of(*curve)
    done = searched(table)
    assert bracket(table.filter(pl.col("learning_rate").is_in(done))) == bracket(table)
    assert len(done) < len(curve[0])


@given(st.lists(st.one_of(st.none(), st.floats(1.0, 7.0)), min_size=2, max_size=40))
@settings(max_examples=25)
def test_whatever_the_losses_it_ends_with_neighbours_on_the_grid_and_trains_nothing_twice(
    losses: list[float | None],
) -> None:
    grid = points(0.001, 1.0, 1000 ** (1 / (len(losses) - 1)) * 1.001)[: len(losses)]
    table = table_of(grid, losses[: len(grid)])
    done = searched(table)
    assert len(set(done)) == len(done)
    lower, upper = bracket(table.filter(pl.col("learning_rate").is_in(done)))
    if upper is None:
        assert lower == grid[-1]
    elif lower is None:
        assert upper == grid[0]
    else:
        assert grid.index(upper) == grid.index(lower) + 1


def test_with_noise_and_seeds_that_vote_it_is_nearly_always_the_grid_s_bracket_at_under_half_the_runs() -> None:
    rng, same, shares = np.random.default_rng(0), [], []
    grid = points(0.003, 1.0, 1.25)
    for _ in range(5):
        arms = {
            f"arm{i}": Arm(
                best=math.exp(rng.uniform(-6, -3)),
                curvature=rng.uniform(0.01, 0.1),
                edge=math.exp(rng.uniform(-3, 0.5)),
                edge_width=rng.uniform(0.05, 0.5),
                diverged_above=rng.choice([3.0, np.inf]),
            )
            for i in range(4)
        }
        table, _ = world(rng, n_params=(100_000,), learning_rates=grid, arms=arms, seeds=3)
        for arm in arms:
            cell = table.filter(pl.col("arm") == arm)
            done = searched(cell)
            same.append(bracket(cell.filter(pl.col("learning_rate").is_in(done))) == bracket(cell))
            shares.append(len(done) / len(grid))
    assert np.mean(same) >= 0.9
    assert np.mean(shares) <= 0.45
    assert max(shares) <= 0.6


def test_nothing_unstable_and_nothing_stable_are_answers() -> None:
    grid = points(0.01, 1.0, 1.3)
    assert searched(table_of(grid, [2.0] * len(grid))) == [*first_rates(grid), grid[-1]]
    assert searched(table_of(grid, [None] * len(grid))) == first_rates(grid)


def test_a_better_best_loss_found_later_makes_older_points_unstable() -> None:
    grid = points(0.001, 1.0, 1.25)
    # Seen from the quarters the best loss is 2.0; between them a well of 1.92 turns 2.45, so far stable, unstable.
    losses = [2.0 if rate < 0.15 else 2.45 if rate < 0.4 else 3.0 for rate in grid]
    (well,) = [i for i, rate in enumerate(grid) if rate in first_rates(grid)][1:2]
    losses[well - 1], losses[well] = 1.92, 1.99
    table = table_of(grid, losses)
    done = searched(table)
    assert grid[well - 1] in done
    assert bracket(table.filter(pl.col("learning_rate").is_in(done))) == bracket(table)
    assert bracket(table)[1] == min(rate for rate in grid if rate >= 0.15)


@pytest.mark.parametrize("count", [13, 28])
def test_half_of_the_grid_or_less_is_expected_from_13_points_on(count: int) -> None:
    told = cost(count)
    assert told.least < told.more < count
    assert told.least < 0.45 * count
    assert (told.least + told.more) / 2 < 0.52 * count
    assert next_rates([0.1, 0.2], [0.1, 0.2], known(table_of([0.1, 0.2], [2.0, 3.0]))) == []


# --- whole sweeps -----------------------------------------------------------------------------------------------------

SPACE = "{search:bisection,low:0.02,high:300.0,tolerance:2.0}"
WORDS = [*TINY, "schedule.warmup_steps=0,20", "progress=lines", "lanes=sequential"]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs compiled in a hurry."""
    monkeypatch.setattr(lanes, "compile_program", compile_quickly)


def read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


def test_a_searched_sweep_has_the_grid_s_edges_with_fewer_runs_and_goes_on_where_it_was(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = command(*WORDS, f"{KEY}={SPACE}", "output_dir=results/searched", "dry_run=true")
    assert plan.code == 0, plan.err
    grid = points(0.02, 300.0, 2.0)
    assert f"Round 1: {2 * len(first_rates(grid))} runs" in plan.out
    assert f"of {2 * len(grid)} runs" in plan.out

    whole = command(*WORDS, f"{KEY}={','.join(map(str, grid))}", "output_dir=results/grid")
    assert whole.code == 0, whole.err
    outcome = command(*WORDS, f"{KEY}={SPACE}", "output_dir=results/searched")
    assert outcome.code == 0, outcome.err
    found, full = read("results/searched/summary.json"), read("results/grid/summary.json")
    assert found["max_stable_learning_rate"] == full["max_stable_learning_rate"]
    assert any(row["upper"] for row in full["max_stable_learning_rate"]), "the world has an edge to find"
    by_name = {run["fingerprint"]: run for run in full["runs"]}
    assert [by_name[run["fingerprint"]] for run in found["runs"]] == found["runs"], "the same runs as the grid's"
    assert len(found["runs"]) < len(full["runs"]) * 2 / 3
    assert found["complete"]
    assert f"{len(found['runs'])} of the grid's {len(full['runs'])} runs" in outcome.out
    assert ", round 2: " in outcome.out
    assert any("sensitivity says nothing" in line for line in found["warnings"])
    assert status(["results/searched"]) == 0

    again = command(*WORDS, f"{KEY}={SPACE}", "output_dir=results/searched")
    assert again.code == 0
    assert "Trained" not in again.out

    commands = interrupted(command, monkeypatch, "results/broken")
    assert len(commands) > 2, "between rounds and within them"
    capsys.readouterr()
    manifest = read("results/broken/sweep.json")
    assert manifest["search"]["finished"]
    assert manifest["search"] == read("results/searched/sweep.json")["search"]
    assert read("results/broken/summary.json")["runs"] == found["runs"]

    taken = command(*WORDS, f"{KEY}={SPACE}", "output_dir=results/taken", "reuse_from=results/grid")
    assert taken.code == 0
    assert "Trained" not in taken.out
    assert read("results/taken/summary.json")["runs"] == found["runs"]


def interrupted(command: Command, monkeypatch: pytest.MonkeyPatch, folder: str) -> list[Outcome]:
    """The search, stopped again and again after 29 dispatches: in mid-run, between runs and between rounds."""

    class Stop:
        left = 29

        def __call__(self) -> bool:
            self.left -= 1
            return self.left < 0

    @contextmanager
    def stopping(say: Any) -> Iterator[Stop]:
        yield stop

    outcomes: list[Outcome] = []
    with monkeypatch.context() as patch:
        patch.setattr(campaign, "stop_flag", stopping)
        while not outcomes or outcomes[-1].code == 130:
            stop = Stop()
            outcomes.append(command(*WORDS, f"{KEY}={SPACE}", "training.checkpoint_every=10", f"output_dir={folder}"))
            if outcomes[-1].code == 130:
                assert status([folder]) == 1
                assert not read(f"{folder}/sweep.json")["search"]["finished"]
    assert outcomes[-1].code == 0
    return outcomes


def test_a_run_that_fails_ends_its_own_cell_s_search_only(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from stability.launching import work

    train = work.train

    def broken(program: Any, lanes: Any, *others: Any) -> None:
        if lanes[0].config.schedule.warmup_steps == 0:
            raise RuntimeError("a cosmic ray")
        train(program, lanes, *others)

    words = [*WORDS, f"{KEY}={SPACE}", "output_dir=results/s"]
    with monkeypatch.context() as patch:
        patch.setattr(work, "train", broken)
        outcome = command(*words)
    assert outcome.code == 1
    assert "not known yet" in outcome.out
    summary = read("results/s/summary.json")
    assert not summary["complete"]
    done = {run["learning_rate"] for run in summary["runs"] if run["status"] != "failed"}
    assert len(done) > len(first_rates(points(0.02, 300.0, 2.0)))
    assert status(["results/s"]) == 1
    assert command(*words).code == 0
    assert read("results/s/summary.json")["complete"]
