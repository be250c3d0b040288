"""Lanes over devices: eight CPU devices, which the tests' configuration has JAX show."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import TINY, Command
from jax.sharding import Mesh
from quick import compile_quickly

from stability.config import RunConfig
from stability.errors import InputError
from stability.launching.devices import Layout, check_mesh, choose_layout, usable_cores
from stability.launching.settings import MeshSettings
from stability.tracking.files import read_json
from stability.training import lanes
from stability.training.lanes import STEPS_PER_DISPATCH, Program, Programs
from stability.training.mesh import lane_mesh
from stability.training.step import StepMetrics, TrainState
from stability.typed import from_mapping

BATCH, TIME, VOCABULARY, STEPS = 8, 8, 32, 10
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS_PER_DISPATCH, BATCH, TIME + 1), np.int32)
VALIDATION = np.random.default_rng(1).integers(0, VOCABULARY, (2, BATCH, TIME + 1), np.int32)
programs = Programs()


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Programs compiled in a hurry: what is compared is compiled alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "compile_program", compile_quickly)
        yield


def run(rate: float = 1e-2, seed: int = 0) -> RunConfig:
    return from_mapping(
        RunConfig,
        {
            "model": {"width": 16, "depth": 1, "head_dim": 8},
            "training": {"steps": 2 * STEPS, "batch_size": BATCH, "sequence_length": TIME},
            "schedule": {"warmup_steps": 0},
            "optimizer": {"learning_rate": rate},
            "data": {"vocabulary_size": VOCABULARY, "seed": 0},
            "seed": seed,
        },
    )


RUNS = [run(1e-3), run(3e-3, 1), run(1e-2, 2), run(3e-2, 3)]


def mesh(lanes: int, data: int = 1, fsdp: int = 1) -> Mesh:
    return lane_mesh(jax.devices()[: lanes * data * fsdp], data, fsdp)


def program(lanes: int | None, on: Mesh | None = None) -> Program:
    return programs.get(run(), lanes, VALIDATION.shape, on)


def train(of: Program, configs: list[RunConfig]) -> tuple[TrainState, StepMetrics, Any, list[float]]:
    """Ten steps from the seeds: state, metrics, last observations and validation losses, of all seats."""
    config = of.place(configs)
    tokens = np.stack([TOKENS] * len(configs))
    state, metrics, seen = of.step(config, of.start(config), tokens, STEPS, True)
    return state, jax.device_get(metrics), jax.device_get(seen), list(of.loss(config, state, VALIDATION))


def assert_close(one: Any, other: Any, **tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


@pytest.fixture(scope="module")
def alone() -> list[tuple[TrainState, StepMetrics, Any, list[float]]]:
    return [train(program(None), [config]) for config in RUNS]


MESHES = {"a lane a device": (4, 1, 1), "two a device": (2, 1, 1), "data and fsdp": (2, 2, 2)}


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_lanes_on_a_mesh_agree_with_solo_runs(shape: tuple[int, int, int], alone: Any) -> None:
    """Another program rounds otherwise: the agreement is to tolerance, over the first steps."""
    of = program(4, mesh(*shape))
    state, metrics, seen, losses = train(of, RUNS)
    for i, (solo_state, solo_metrics, solo_seen, solo_losses) in enumerate(alone):
        assert_close(of.lane(metrics, i), solo_metrics, rtol=1e-4)
        assert_close(of.lane(seen, i), solo_seen, rtol=1e-2, atol=1e-4)
        assert losses[i] == pytest.approx(solo_losses[0], rel=1e-4)
        assert_close(of.split(state.parameters, 4)[i], solo_state.parameters, rtol=1e-3, atol=1e-4)


def collectives(of: Program) -> list[list[list[int]]]:
    """The groups of devices between which a step communicates, one list for each operation that does."""
    found = []
    for line in of.advance.as_text().splitlines():
        if re.search(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)[\w-]*\(", line):
            groups = re.search(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\[[^ ]*)", line)
            assert groups, line
            found.append(_groups(groups[1].rstrip(",")))
    return found


def _groups(text: str) -> list[list[int]]:
    """Device groups as XLA writes them: {{0,1},{2,3}}, or [2,2]<=[4], or [2,2]<=[2,2]T(1,0)."""
    if text.startswith("{"):
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    shape, grid, turned = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    devices = np.arange(np.prod(numbers := [int(n) for n in grid.split(",")])).reshape(numbers)
    if turned:
        devices = devices.transpose([int(axis) for axis in turned.split(",")])
    return devices.reshape([int(n) for n in shape.split(",")]).tolist()


def test_nothing_passes_between_lanes() -> None:
    assert collectives(program(4, mesh(4))) == []
    assert collectives(program(4, mesh(2))) == []


def test_devices_of_one_lane_talk_among_themselves_only() -> None:
    found = collectives(program(4, mesh(2, 2, 2)))
    assert found, "a batch divided over devices takes the sum of their gradients"
    for groups in found:
        for group in groups:
            assert len({device // 4 for device in group}) == 1, group


def test_fsdp_cuts_matrices_and_moments_along_the_width() -> None:
    of = program(4, mesh(2, 2, 2))
    state = of.start(of.place(RUNS))
    for tree in (state.parameters, state.optimizer[1].mu):
        kernel = tree["blocks"]["block_00"]["mlp"]["inner"]["kernel"]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 64)}
    assert {shard.data.shape for shard in state.step.addressable_shards} == {(2,)}


def test_seats_beyond_the_runs_change_nothing() -> None:
    of = program(4, mesh(4))
    full, some = train(of, RUNS), train(of, RUNS[:3])
    for i in range(3):
        for a, b in zip(jax.tree.leaves(of.lane(full[1], i)), jax.tree.leaves(of.lane(some[1], i)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(of.split(some[0], 3)) == 3


@pytest.mark.parametrize("shapes", [((4, 1, 1), (2, 1, 1)), ((2, 2, 2), (4, 1, 1))])
def test_states_move_to_another_number_of_devices(shapes: tuple[tuple[int, int, int], ...]) -> None:
    one, other = (program(4, mesh(*shape)) for shape in shapes)
    state = train(one, RUNS)[0]
    parts = one.split(state, 4)
    again = one.split(one.resume(other.split(other.resume(parts), 4)), 4)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


# How it is chosen


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stability.launching.devices.usable_cores", lambda: 2)


@pytest.mark.usefixtures("two_cores")
def test_auto_puts_a_run_on_each_core() -> None:
    layout = choose_layout("auto", MeshSettings(), runs=7)
    assert (layout.strategy, layout.places, layout.seats(2)) == ("sharded", 2, 2)
    assert "each of 2 cores" in layout.why
    assert layout.most_lanes(run(), limit=1e9) == 2
    assert layout.most_lanes(run(), limit=1) == 1
    assert choose_layout("auto", MeshSettings(), runs=1).strategy == "sequential"


@pytest.mark.usefixtures("two_cores")
def test_a_run_that_is_alone_trains_as_a_solo_run() -> None:
    layout = choose_layout("sharded", MeshSettings(), runs=1)
    assert layout.seats(1) is None
    assert layout.mesh(1) is None


def test_lanes_are_spread_evenly() -> None:
    layout = Layout("sharded", "", tuple(jax.devices()))
    assert (layout.seats(8), layout.seats(3)) == (8, 3)
    assert layout.mesh(3).shape == {"lanes": 3, "data": 1, "fsdp": 1}  # type: ignore[union-attr]
    inside = Layout("sharded", "", tuple(jax.devices()), data=2, fsdp=2)
    assert (inside.places, inside.seats(3), inside.seats(1)) == (2, 4, 1)


@pytest.mark.parametrize(
    ("lanes", "settings", "key"),
    [("vmap", {"data": 2}, "lanes"), ("sequential", {"fsdp": 2}, "lanes"), ("auto", {"data": 3, "fsdp": 3}, "mesh")],
)
def test_what_no_layout_does_is_refused(lanes: Any, settings: dict[str, int], key: str) -> None:
    with pytest.raises(InputError) as error:
        choose_layout(lanes, MeshSettings(**settings), runs=4)
    assert error.value.key == key


def test_what_a_lane_s_devices_cannot_divide_is_refused() -> None:
    devices = tuple(jax.devices())
    with pytest.raises(InputError, match=r"training\.batch_size=8"):
        check_mesh([run()], Layout("sharded", "", devices, data=3))
    narrow = dataclasses.replace(run(), model=dataclasses.replace(run().model, width=17))
    with pytest.raises(InputError, match=r"model\.width=17"):
        check_mesh([narrow], Layout("sharded", "", devices, fsdp=2))


def test_a_core_is_counted_once_and_a_quota_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr("stability.launching.devices.CPUS", tmp_path)
    monkeypatch.setattr("stability.launching.devices.CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 2
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cores() == 1


# Whole sweeps


SWEEP = [*TINY, "training.checkpoint_every=10", "optimizer.learning_rate=0.003,0.01,0.03"]


def rows(folder: str) -> dict[str, list[str]]:
    """The lines of each run's metrics, without what depends on the clock."""
    found = {}
    for path in sorted(Path(folder, "runs").iterdir()):
        text = (path / "metrics.jsonl").read_text()
        found[path.name] = [re.sub(r'"speed/tokens_per_second": [^,}]+', "", line) for line in text.splitlines()]
    return found


def losses(folder: str) -> list[float]:
    return [read_json(path / "summary.json")["loss_validation"] for path in sorted(Path(folder, "runs").iterdir())]


def test_a_sharded_sweep_is_that_of_solo_runs(command: Command) -> None:
    assert command(*SWEEP, "output_dir=results/one", "lanes=sequential").code == 0
    assert command(*SWEEP, "output_dir=results/each", "lanes=sharded").code == 0
    assert losses("results/each") == pytest.approx(losses("results/one"), rel=2e-3)
    provenance = [read_json(path / "provenance.json") for path in Path("results/each/runs").iterdir()]
    assert {one["starts"][-1]["lanes"] for one in provenance} == {"sharded"}


@pytest.mark.usefixtures("two_cores")
def test_a_sharded_sweep_goes_on_where_it_was_stopped(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs on two cores: the second group has an empty seat. Stopped in the first, resumed: the same bits."""
    assert command(*SWEEP, "output_dir=results/whole", "lanes=sharded").code == 0
    step_of, calls = Program.step, []

    def stopping(self: Program, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step_of(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Program, "step", stopping)
        assert command(*SWEEP, "output_dir=results/cut", "lanes=sharded").code == 130
    assert command(*SWEEP, "output_dir=results/cut", "lanes=sharded").code == 0
    assert rows("results/cut") == rows("results/whole")


def test_a_mesh_inside_a_lane_through_the_command_line(command: Command) -> None:
    words = [*TINY, "optimizer.learning_rate=0.003,0.01"]
    assert command(*words, "output_dir=results/one", "lanes=sequential").code == 0
    done = command(*words, "output_dir=results/inside", "mesh.data=2", "mesh.fsdp=2")
    assert done.code == 0
    assert "lanes: sharded (each run on 4 devices)" in done.out
    assert losses("results/inside") == pytest.approx(losses("results/one"), rel=2e-3)
    bad = command(*words, "output_dir=results/bad", "mesh.fsdp=3")
    assert bad.code == 2
    assert "mesh" in bad.err
    assert not Path("results/bad").exists()
