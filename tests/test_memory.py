"""What programs need of memory: the estimate against what XLA says, packs split to what there is, limits found."""

import os
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quick import compile_quickly

from stability.config import RunConfig, resolve, to_leaves
from stability.data.corpus import load_corpus
from stability.launching import devices, memory
from stability.launching.memory import (
    amount,
    compiled_bytes,
    find_budget,
    host_memory,
    lanes_that_fit,
    parameter_count,
    program_bytes,
    state_bytes,
)
from stability.launching.plan import group_sizes
from stability.tracking.record import read_rows, run_folders
from stability.training import lanes
from stability.training.step import initial_state
from stability.typed import from_mapping
from tests.conftest import TINY, Command

SMALL = {"width": 32, "depth": 1, "head_dim": 16}


def config(
    vocabulary: int = 256,
    training: dict[str, Any] | None = None,
    compute: dict[str, Any] | None = None,
    **model: Any,
) -> RunConfig:
    given_ = {
        "model": SMALL | model,
        "training": {"batch_size": 4, "sequence_length": 16} | (training or {}),
        "compute": compute or {},
    }
    return resolve(from_mapping(RunConfig, given_), corpus="0" * 64, vocabulary_size=vocabulary)


# --- the estimate -----------------------------------------------------------------------------------------------------

STRUCTURES: list[dict[str, Any]] = [
    {},
    {"vocabulary": 1000, "depth": 3},
    {"qk_layernorm": "none"},
    {"qk_layernorm": "whole_width", "parameterization": "mup_full"},
    {"attention": "none"},
    {"mlp": "none", "kappa": 1.0},
    {"attention": "none", "mlp": "none"},
    {"attention": "squared_relu", "mlp_ratio": 2},
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_parameters_and_state_are_counted_exactly(structure: dict[str, Any]) -> None:
    one = config(**structure)
    state = jax.eval_shape(initial_state, to_leaves(one))
    assert parameter_count(one) == sum(leaf.size for leaf in jax.tree.leaves(state.parameters))
    assert state_bytes(one) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


LONGER = {"batch_size": 8, "sequence_length": 32}
COMPILED = [
    (config(training=LONGER), None),
    (config(training=LONGER, attention="none", mlp="none"), 3),
    (config(width=128, mlp="none", qk_layernorm="none", training={"batch_size": 1}), None),
    (config(depth=2, training=LONGER, compute={"rematerialise": "blocks"}), None),
    (config(depth=2, training=LONGER, compute={"rematerialise": "blocks", "blocks": "scanned"}), None),
]


@pytest.mark.parametrize(
    ("one", "count"), COMPILED, ids=["whole", "bigram", "mostly parameters", "computed again in vain", "computed again"]
)
def test_the_estimate_is_near_what_the_compiled_program_says(one: RunConfig, count: int | None) -> None:
    program = lanes.compile_program(one, count, (1, one.training.batch_size, one.training.sequence_length + 1))
    said = compiled_bytes(program)
    assert said is not None
    assert 0.75 < program_bytes(one, count or 1) / said < 1.35


@given(st.integers(1, 50), st.integers(1, 8), st.floats(0, 0.99))
def test_as_many_lanes_fit_as_the_estimate_allows(count: int, devices: int, more: float) -> None:
    one = config()
    each = program_bytes(one, 2) - program_bytes(one, 1)
    limit = program_bytes(one, count) + int(more * each)
    assert lanes_that_fit(one, limit) == count
    assert lanes_that_fit(one, limit, devices) == count * devices
    assert program_bytes(one, count * devices, devices) == program_bytes(one, count)
    assert lanes_that_fit(one, program_bytes(one, 1) - 1) == 0


# --- groups -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(1, 300))
def test_groups_hold_every_run_fit_and_have_two_sizes_at_most(runs: int, most: int) -> None:
    sizes = group_sizes(runs, most)
    assert sum(sizes) == runs
    assert 1 <= min(sizes) <= max(sizes) <= most
    assert len(set(sizes)) <= 2
    assert len(sizes) <= max(-(-runs // most), runs / (0.75 * most)), "a third more groups at most"
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("runs", "most", "sizes"),
    [(7, 7, (7,)), (7, 100, (7,)), (10, 4, (4, 3, 3)), (35, 9, (7,) * 5), (9, 4, (3, 3, 3)), (5, 1, (1,) * 5)],
)
def test_groups_make_few_programs(runs: int, most: int, sizes: tuple[int, ...]) -> None:
    assert group_sizes(runs, most) == sizes


RATES = [*TINY, "optimizer.learning_rate=0.003,0.01,0.03,0.1,0.3", "training.steps=20"]


def tiny() -> RunConfig:
    """The structure of `RATES`."""
    model = {"width": 16, "depth": 1, "head_dim": 8}
    training = {"batch_size": 4, "sequence_length": 16, "steps": 20, "validation_sequences": 16}
    given_ = from_mapping(RunConfig, {"model": model, "training": training})
    corpus = load_corpus("kjv", None)
    return resolve(given_, corpus=corpus.hash, vocabulary_size=corpus.vocabulary_size)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The lanes of every program that is compiled, in a hurry, while the test runs."""
    made: list[int | None] = []

    def counting(one: RunConfig, count: int | None, *where: Any) -> lanes.Program:
        made.append(count)
        return compile_quickly(one, count, *where)

    monkeypatch.setattr(lanes, "compile_program", counting)
    return made


def losses(folder: str) -> dict[str, list[float]]:
    return {
        run.path.name: [row["loss/validation"] for row in read_rows(run.metrics) if "loss/validation" in row]
        for run in run_folders(Path(folder))
    }


def test_a_pack_split_by_a_limit_trains_to_the_same_results(
    command: Command, compiled: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "compiled_bytes", lambda program: None)  # as on a device that tells nothing
    limit = program_bytes(tiny(), 2) + 1000
    assert command(*RATES, "output_dir=results/one", "lanes=sequential").code == 0
    outcome = command(*RATES, "output_dir=results/split", "lanes=vmap", f"memory_limit={limit}")
    assert outcome.code == 0, outcome.err
    assert compiled == [None, 2, None], "a run that is left over trains as a solo run"
    one, split = losses("results/one"), losses("results/split")
    assert one.keys() == split.keys()
    for name in one:
        assert split[name] == pytest.approx(one[name], rel=2e-3)


def test_what_does_not_fit_once_compiled_is_halved_before_it_trains(
    command: Command, compiled: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "compiled_bytes", lambda program: 10**9 * (program.lanes or 1))
    outcome = command(*RATES, "output_dir=results/s", "lanes=vmap", "memory_limit=3.5GB")
    assert outcome.code == 0, outcome.err
    assert compiled == [5, 2, None]
    assert "need 5 GB, more than there is (3.5 GB: as asked): half of them at a time." in outcome.out
    assert len(losses("results/s")) == 5


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_run_whose_state_is_too_large_is_refused_before_anything_compiles(
    command: Command, compiled: list[int | None]
) -> None:
    outcome = command(*RATES, "memory_limit=50kB")
    assert outcome.code == 2
    assert "memory_limit=50 kB (as asked): a single run of " in outcome.err
    assert "for parameters and optimizer alone" in outcome.err
    assert not compiled
    assert not Path("results").exists()


def test_where_the_estimate_leaves_doubt_the_compiled_program_decides(
    command: Command, compiled: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = program_bytes(tiny(), 1) - 1000
    monkeypatch.setattr(devices, "compiled_bytes", lambda program: limit + 1)
    outcome = command(*RATES, f"memory_limit={limit}", "lanes=sequential")
    assert outcome.code == 2
    assert "its compiled program's own analysis" in outcome.err
    assert compiled == [None]
    assert not Path("results").exists()
    monkeypatch.setattr(devices, "compiled_bytes", lambda program: limit)
    outcome = command(*RATES, f"memory_limit={limit}", "lanes=sequential")
    assert outcome.code == 0, outcome.err
    assert "compiling it to know" in outcome.out
    assert compiled == [None, None], "what was compiled to know trains"


@pytest.mark.parametrize("value", ["lots", "8XB", "-1", "0", "8gb", "true"])
def test_a_limit_that_is_none_is_refused(command: Command, value: str) -> None:
    outcome = command(*RATES, f"memory_limit={value}")
    assert outcome.code == 2
    assert outcome.err.startswith("error: memory_limit=")
    assert not Path("results").exists()


# --- what there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("1.5 MiB", 1572864), ("500000", 500000), ("2TB", 2 * 10**12)]
)
def test_amounts_of_memory_are_written_as_people_do(command: Command, text: str, size: int) -> None:
    outcome = command(*RATES, f"memory_limit='{text}'", "dry_run=true")
    assert outcome.code == 0, outcome.err
    assert f"of {amount(size)}: as asked." in outcome.out


def test_amounts_have_three_digits() -> None:
    sizes = {17: "17 B", 1180: "1.18 kB", 999_700: "1 MB", 58_100_000_000: "58.1 GB", 2.5e15: "2.5e+03 TB"}
    assert {size: amount(size) for size in sizes} == sizes


def test_the_memory_of_this_machine_is_found() -> None:
    budget = find_budget(None)
    assert 10**7 < budget.limit < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert "free here" in budget.basis
    assert find_budget(123).limit == 123


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_that_allows_less_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert host_memory() == 8000 * 1024
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}
    most, used, cache = names[version]
    (tmp_path / "proc/self/cgroup").write_text({1: "4:cpu:/x\n7:memory:/job/step\n", 2: "0::/job/step\n"}[version])
    group = tmp_path / "cgroup" / ("memory" if version == 1 else "") / "job"
    (group / "step").mkdir(parents=True)
    (group / f"memory.{most}").write_text("5000000\n")
    (group / f"memory.{used}").write_text("3000000\n")
    (group / "memory.stat").write_text(f"anon 1\n{cache} 1000000\n")
    (group / "step" / f"memory.{most}").write_text("max\n")
    assert host_memory() == 3_000_000
