"""Numbers that go wrong: classified, the first bad step and observation recorded, the runs beside it as they were."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import TINY, Command, Outcome
from hypothesis import given
from hypothesis import strategies as st
from quick import compile_quickly
from test_sweep import stories

from stability.config import RunConfig, to_leaves
from stability.data.batches import Batches
from stability.launching import campaign, launch, work
from stability.status import main as status
from stability.tracking.files import read_json
from stability.training import lanes
from stability.training.diagnosis import (
    TENSORS_OF_A_BLOCK,
    TOKENS,
    UPDATED_PARAMETERS,
    first_bad,
    first_bad_observations,
    order_of_computation,
)
from stability.training.lanes import STEPS_PER_DISPATCH, Program, Programs
from stability.training.step import TrainState, initial_state, step
from stability.typed import from_mapping

BATCH, TIME, VOCABULARY = 2, 8, 32
VALIDATION_SHAPE = (1, BATCH, TIME + 1)
BATCH_OF_TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, TIME + 1), dtype=np.int32)


programs = Programs()


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Programs compiled in a hurry, and once for all sweeps: what is compared is compiled alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "compile_program", compile_quickly)
        patch.setattr(launch, "KeptPrograms", lambda: programs)
        yield


# The order of computation


def config(**model: Any) -> RunConfig:
    """Two blocks of two heads."""
    groups = {
        "model": {"width": 16, "depth": 2, "head_dim": 8, "qk_layernorm": "none", "attention_scale_exponent": 0.5},
        "training": {"steps": 20, "batch_size": BATCH, "sequence_length": TIME},
        "schedule": {"warmup_steps": 0},
        "data": {"vocabulary_size": VOCABULARY, "seed": 0},
    }
    return from_mapping(RunConfig, groups | {"model": groups["model"] | model})


MEASURED_EVERY_STEP = {"loss/train", "loss/train_with_z_loss", "optimizer/gradient_norm"}


def observed_names(**model: Any) -> set[str]:
    leaves = to_leaves(config(**model))
    state = jax.eval_shape(initial_state, leaves)
    return set(jax.eval_shape(step, leaves, state, BATCH_OF_TOKENS, np.bool_(True))[2])


def test_every_number_that_others_are_computed_from_has_its_place() -> None:
    order = order_of_computation(2)
    assert len(order) == len(set(order))
    everything = observed_names(qk_layernorm="per_head") | MEASURED_EVERY_STEP
    ratios = {name for name in everything if name.startswith("gradient/rms_over_eps/")}
    assert set(order) == everything - ratios, "a new observation needs a place in stability/training/diagnosis.py"
    assert observed_names(attention="squared_relu", mlp="none") - ratios < set(order)


@given(st.sets(st.sampled_from(order_of_computation(2))), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_the_first_in_the_order_is_named_whatever_comes_after(bad: set[str], value: float) -> None:
    order = order_of_computation(2)
    heads = {name: np.ones(2, np.float32) for name in order if name.startswith("attention_logit/")}
    numbers = dict.fromkeys(sorted(order), np.float32(1)) | heads  # a program sorts its results by name
    for name in bad:
        numbers[name] = np.array([1.0, value], np.float32) if name in heads else np.float32(value)
    assert first_bad(2, numbers) == next((name for name in order if name in bad), UPDATED_PARAMETERS)


# A bad step, of every kind


@pytest.fixture(scope="module")
def solo() -> Program:
    return programs.get(config(), None, VALIDATION_SHAPE)


def kernel(parameters: Any, tensor: str) -> tuple[dict[str, np.ndarray], str]:
    """Where a tensor is, by its name in observations: the dict that holds it, and its key there."""
    place = parameters["blocks"] if tensor.startswith("block_") else parameters
    for part in tensor.split("/"):
        parent, place = place, place[part]
    return (parent, part) if isinstance(place, np.ndarray) else (place, "kernel")


def with_tensors(state: TrainState, changes: dict[str, Callable[[np.ndarray], Any]]) -> TrainState:
    """The state with some tensors changed."""
    parameters = jax.tree.map(np.array, state.parameters)
    for tensor, change in changes.items():
        place, key = kernel(parameters, tensor)
        place[key] = np.asarray(change(place[key]), np.float32)
    return dataclasses.replace(state, parameters=parameters)


def with_leaf(placed: RunConfig, dotted: str, value: float) -> RunConfig:
    """The config with one leaf at any value, also one that no config may have."""
    group, name = dotted.split(".")
    changed = dataclasses.replace(getattr(placed, group), **{name: np.float32(value)})
    return dataclasses.replace(placed, **{group: changed})


def scaled(factor: float, *tensors: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return dict.fromkeys(tensors, lambda tensor: tensor * np.float32(factor))


def one_entry(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def poison(tensor: np.ndarray) -> np.ndarray:
        poisoned = tensor.copy()
        poisoned.flat[tensor.size // 2] = value
        return poisoned

    return poison


@dataclasses.dataclass(frozen=True)
class Poison:
    """What is wrong with a step, and which of its numbers goes bad first."""

    expected: str
    tensors: dict[str, Callable[[np.ndarray], Any]] = dataclasses.field(default_factory=dict)
    leaves: dict[str, float] = dataclasses.field(default_factory=dict)
    tokens: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)


HUGE = 1e18
"""The sum of a tensor's squares is finite at this size; a product of three tensors is not."""
OF_QK_LAYERNORM = ("attention/query_norm/gain", "attention/key_norm/gain")
TENSORS = [
    "embedding",
    *(f"block_{i:02d}/{name}" for i in range(2) for name in TENSORS_OF_A_BLOCK if name not in OF_QK_LAYERNORM),
    "final_norm/gain",
    "head",
]
EVERY_TENSOR = [
    Poison(f"parameter/rms/{tensor}", {tensor: one_entry([np.nan, np.inf][i % 2])}) for i, tensor in enumerate(TENSORS)
]
BY_BLOCK = [
    poison
    for block in ("block_00", "block_01")
    for poison in (
        Poison(
            f"attention_logit/max/{block}",
            scaled(HUGE, f"{block}/attention/query", f"{block}/attention/key"),
            {"model.attention_scale_exponent": -3},
        ),
        Poison(
            f"attention_output/rms/{block}",
            scaled(HUGE, f"{block}/attention_norm/gain", f"{block}/attention/value", f"{block}/attention/out"),
        ),
        Poison(
            f"mlp_output/rms/{block}",
            scaled(HUGE, f"{block}/mlp_norm/gain", f"{block}/mlp/inner", f"{block}/mlp/outer"),
        ),
        # Nothing forward: the MLP adds zero, and its inner matrix has a gradient through the outer one.
        Poison(
            f"gradient/rms/{block}/mlp/inner",
            scaled(0, f"{block}/mlp/inner") | scaled(HUGE, f"{block}/mlp/outer"),
            {"loss.z_loss": 1e6},
        ),
    )
]
LATER = [
    Poison("query_rms/before_norm/block_00", leaves={"model.layernorm_eps": np.nan}),
    Poison("query_rms/after_norm/block_00", leaves={"model.rotary_base": np.nan}),
    Poison("attention_logit/max/block_00", leaves={"model.attention_scale_exponent": np.nan}),
    Poison("attention_logit/max/block_00", leaves={"model.attention_scale_exponent": -60.0}),
    Poison("loss/train_with_z_loss", leaves={"loss.z_loss": np.nan}),
    Poison("gradient/rms/head", leaves={"loss.z_loss": 1e30}),
    Poison("update/rms/embedding", leaves={"optimizer.clip_norm": np.nan}),
    Poison("update/rms/embedding", leaves={"optimizer.beta2": np.nan}),
    Poison(UPDATED_PARAMETERS, leaves={"optimizer.learning_rate": np.inf}),
    Poison(UPDATED_PARAMETERS, leaves={"optimizer.weight_decay": np.inf}),
    Poison(TOKENS, tokens={(0, 0): VOCABULARY}),  # read as an input only
    Poison(TOKENS, tokens={(1, TIME): 2**31 - 1}),  # as a target only
    Poison(TOKENS, tokens={(1, 3): -1}),
]


def poisoned(poison: Poison, program: Program) -> tuple[RunConfig, TrainState, np.ndarray]:
    placed = program.place([config()])
    state = with_tensors(program.start(placed), poison.tensors)
    for leaf, value in poison.leaves.items():
        placed = with_leaf(placed, leaf, value)
    batch = BATCH_OF_TOKENS.copy()
    for place, token in poison.tokens.items():
        batch[place] = token
    return placed, state, batch


def advanced(program: Program, placed: RunConfig, state: TrainState, *batches: np.ndarray) -> tuple[TrainState, Any]:
    """Three steps of each lane, all on the same batch: the state, and whether each lane is alive after each step."""
    tokens = np.zeros((len(batches), STEPS_PER_DISPATCH, BATCH, TIME + 1), np.int32)
    tokens[:, :3] = np.stack(batches)[:, None]
    state, metrics, _ = program.step(placed, state, tokens, 3, False)
    return state, np.asarray(metrics.alive)[..., :3]


@pytest.mark.parametrize("poison", EVERY_TENSOR + BY_BLOCK + LATER, ids=lambda poison: poison.expected)
def test_a_bad_step_ends_a_run_and_names_what_went_bad_first(poison: Poison, solo: Program) -> None:
    placed, state, batch = poisoned(poison, solo)
    before = jax.tree.map(np.array, state.parameters)
    state, alive = advanced(solo, placed, state, batch)
    assert not np.any(alive)
    state, names = first_bad_observations(solo, placed, state, {0: batch}, is_needed=False)
    assert names == {0: poison.expected}
    for kept, old in zip(jax.tree.leaves(state.parameters), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(kept, old)


# Whole sweeps


def summaries(folder: str) -> dict[str, dict[str, Any]]:
    """Every run's summary, without what the clock says, by fingerprint."""
    found = {}
    for path in sorted(Path(folder, "runs").glob("*/summary.json")):
        summary = {key: value for key, value in read_json(path).items() if key not in ("seconds", "metrics")}
        found[summary["fingerprint"]] = summary
    return found


def the_bad_one(folder: str) -> dict[str, Any]:
    """The summary of a sweep's only diverged run; every other one finished, and there is no NaN in any file."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in a file")

    for path in Path(folder).rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)
    found = list(summaries(folder).values())
    (bad,) = [summary for summary in found if summary["status"] == "diverged"]
    assert all(one["status"] == "finished" and one["first_bad_observation"] is None for one in found if one is not bad)
    return bad


def last_row(folder: str, summary: dict[str, Any]) -> dict[str, Any]:
    (rows,) = [rows for name, rows in stories(folder).items() if name.endswith(summary["fingerprint"])]
    return rows[-1]


def differing(folder: str, other: str) -> list[str]:
    """The fingerprints of the runs, the same in two sweeps, that went another way."""
    one, two = stories(folder), stories(other)
    assert one.keys() == two.keys()
    return [name.rsplit("-", 1)[-1] for name in one if one[name] != two[name]]


def assert_neighbour_alike(folder: str, other: str) -> None:
    """The run that two sweeps share is the same bit for bit."""
    one, two = stories(folder), stories(other)
    (shared,) = one.keys() & two.keys()
    assert one[shared] == two[shared]


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("sequential", "float32"), ("sequential", "bfloat16"), ("vmap", "float32"), ("sharded", "float32")],
)
def test_an_enormous_learning_rate_harms_no_run_beside_it(
    command: Command, capsys: pytest.CaptureFixture[str], strategy: str, precision: str
) -> None:
    words = [*TINY, f"lanes={strategy}", f"training.precision={precision}"]
    assert command(*words, "optimizer.learning_rate=0.01,1e30", "output_dir=bad").code == 0
    # Beside sequential lanes no run at all; other strategies need a second lane for the program to be the same.
    others = "0.01" if strategy == "sequential" else "0.01,0.02"
    assert command(*words, f"optimizer.learning_rate={others}", "output_dir=good").code == 0
    assert_neighbour_alike("bad", "good")
    bad = the_bad_one("bad")
    assert bad["learning_rate"] == 1e30
    assert 0 < bad["first_bad_step"] == bad["steps"] < 30
    assert bad["first_bad_observation"].startswith("parameter/rms/"), "beyond what can be squared, then beyond all"
    assert bad["loss_validation"] is None
    row = last_row("bad", bad)
    assert row["step"] == bad["first_bad_step"]
    assert not [name for name in row if name.startswith("attention_logit")]
    capsys.readouterr()
    assert status(["bad"]) == 0
    assert f"{bad['first_bad_observation']} is not finite from step {bad['steps']} on" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["sequential", "vmap"])
def test_a_gradient_that_overflows_ends_a_run_whose_loss_and_parameters_are_finite(
    command: Command, strategy: str
) -> None:
    assert command(*TINY, f"lanes={strategy}", "loss.z_loss=0.0001,1e30", "output_dir=bad").code == 0
    bad = the_bad_one("bad")
    assert bad["first_bad_observation"] == "gradient/rms/head"
    assert bad["first_bad_step"] == 0
    row = last_row("bad", bad)
    assert row["optimizer/gradient_norm"] is None
    assert row["loss/train_with_z_loss"] > 1e30


def test_a_number_that_goes_bad_in_one_lane_s_memory_ends_that_lane(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, "lanes=vmap", "seed=0,1"]
    assert command(*words, "output_dir=good").code == 0
    step_of, calls = Program.step, []

    def struck(self: Program, placed: RunConfig, state: TrainState, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # steps 11 to 20
            parameters = jax.tree.map(np.array, state.parameters)
            parameters["blocks"]["block_00"]["mlp"]["outer"]["kernel"][1, 5, 7] = np.nan
            state = dataclasses.replace(state, parameters=parameters)
        return step_of(self, placed, state, *rest)

    monkeypatch.setattr(Program, "step", struck)
    assert command(*words, "output_dir=bad").code == 0
    bad = the_bad_one("bad")
    assert (bad["seed"], bad["first_bad_step"]) == (1, 11)
    assert bad["first_bad_observation"] == "parameter/rms/block_00/mlp/outer"
    assert differing("bad", "good") == [bad["fingerprint"]]


# Bad data, with interruptions before and after it

BAD_SEED, BAD_STEP = 1, 13
STOPS = {"sequential": (7, 8), "vmap": (2, 3), "sharded": (2, 3)}
"""After how many looks at the flag a sweep stops: when the bad run has made 11 steps, and 21, its bad one included."""


@contextmanager
def bad_tokens(steps: dict[int, int]) -> Iterator[None]:
    """Data seed -> the step whose batch has a token outside the vocabulary, as an input only."""
    batches_of = Batches.batches

    def broken(self: Batches, data_seed: int, start: int, count: int, rows: slice) -> np.ndarray:
        tokens = batches_of(self, data_seed, start, count, rows)
        if start <= steps.get(data_seed, -1) < start + count:
            tokens[steps[data_seed] - start, 2, 0] = 256
        return tokens

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "batches", broken)
        yield


def interrupted(command: Command, looks: int, words: Sequence[str]) -> Outcome:
    """The command, asked to stop at its first look at the flag after so many."""
    left = iter([False] * looks)

    @contextmanager
    def stopping(say: Any) -> Iterator[Callable[[], bool]]:
        yield lambda: next(left, True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "stop_flag", stopping)
        return command(*words)


@pytest.mark.parametrize("strategy", STOPS)
def test_a_token_outside_the_vocabulary_ends_its_run_alone_whatever_interrupts(command: Command, strategy: str) -> None:
    words = [*TINY, "seed=0,1", f"lanes={strategy}"]
    assert command(*words, "output_dir=good").code == 0
    with bad_tokens({BAD_SEED: BAD_STEP}):
        assert command(*words, "output_dir=whole").code == 0
        for looks in STOPS[strategy]:
            assert interrupted(command, looks, [*words, f"output_dir=cut{looks}"]).code == 130
            was_over = BAD_SEED in {one.get("seed") for one in summaries(f"cut{looks}").values()}
            assert was_over == (looks == max(STOPS[strategy]))
            assert command(*words, f"output_dir=cut{looks}").code == 0
    bad = the_bad_one("whole")
    assert (bad["seed"], bad["first_bad_step"], bad["first_bad_observation"]) == (BAD_SEED, BAD_STEP, TOKENS)
    assert differing("whole", "good") == [bad["fingerprint"]]
    before, after = (f"cut{looks}" for looks in STOPS[strategy])
    assert summaries(before) == summaries("whole")
    assert stories(before) == stories("whole")
    assert the_bad_one(after) == bad
    if strategy == "sequential":  # elsewhere the other run goes on alone, in another program
        assert summaries(after) == summaries("whole")
        assert stories(after) == stories("whole")


def test_lanes_that_die_in_one_dispatch_are_each_looked_at_in_their_own_bad_step(command: Command) -> None:
    with bad_tokens({0: 13, 1: 17}):
        assert command(*TINY, "seed=0,1", "lanes=vmap", "output_dir=bad").code == 0
    found = {one["seed"]: (one["first_bad_step"], one["first_bad_observation"]) for one in summaries("bad").values()}
    assert found == {0: (13, TOKENS), 1: (17, TOKENS)}


# Validation


def test_validation_text_that_cannot_be_evaluated_makes_no_result(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows_of = work.validation_windows

    def broken(*arguments: Any) -> np.ndarray:
        windows = windows_of(*arguments)
        windows[0, 3] = 256
        return windows

    monkeypatch.setattr(work, "validation_windows", broken)
    assert command(*TINY, "output_dir=bad").code == 0
    bad = the_bad_one("bad")
    assert (bad["first_bad_step"], bad["first_bad_observation"], bad["steps"]) == (0, "loss/validation", 30)
    assert (bad["loss_initial"], bad["loss_validation"]) == (None, None)
    assert bad["loss_train"] < 6


def test_a_run_whose_last_update_spoils_its_validation_loss_alone_diverged_at_its_end(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of, calls = Program.loss, []

    def last_infinite(self: Program, *arguments: Any) -> np.ndarray:
        calls.append(1)
        return loss_of(self, *arguments) * (np.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(Program, "loss", last_infinite)
    assert command(*TINY, "output_dir=bad").code == 0
    bad = the_bad_one("bad")
    assert (bad["first_bad_step"], bad["first_bad_observation"], bad["steps"]) == (30, "loss/validation", 30)
    assert bad["loss_initial"] > 5
    assert bad["loss_validation"] is None


# No memory to look again


@pytest.mark.parametrize(("strategy", "is_known"), [("sequential", True), ("vmap", False)])
def test_without_memory_for_a_second_look_a_run_is_still_classified(
    command: Command, monkeypatch: pytest.MonkeyPatch, strategy: str, is_known: bool
) -> None:
    def full(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1234 bytes.")

    monkeypatch.setattr(Program, "copy", full)
    words = [*TINY, "optimizer.learning_rate=0.01,1e30", f"lanes={strategy}", "output_dir=bad"]
    assert command(*words).code == 0
    bad = the_bad_one("bad")
    assert bad["first_bad_step"] == bad["steps"]
    assert (bad["first_bad_observation"] is not None) == is_known, "a lone run's state is needed by nobody else"


def test_any_other_error_of_the_second_look_is_raised(solo: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Program, "copy", broken)
    placed = solo.place([config()])
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        first_bad_observations(solo, placed, solo.start(placed), {0: BATCH_OF_TOKENS}, is_needed=True)
