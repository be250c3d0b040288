"""Runs to programs, and the folder that a sweep may use: what extends it, what is refused, what is written when."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.config import RunConfig, resolve
from stability.errors import InputError
from stability.launching.calibration import Calibration
from stability.launching.describe import describe
from stability.launching.devices import Layout
from stability.launching.folder import SweepFolder, check_folder, open_folder
from stability.launching.memory import Budget, program_bytes
from stability.launching.plan import PlannedRun, flops_per_token, pack_runs, plan_runs
from stability.launching.settings import Ladder, Sweep
from stability.tracking.files import read_json
from stability.tracking.locks import Locks
from stability.typed import from_mapping

SCALES = {
    "small": {"model.width": 32, "model.depth": 1, "model.head_dim": 16},
    "large": {"model.width": 64, "model.depth": 2, "model.head_dim": 16},
}
CORPUS = "0123456789abcdef" * 4


def run(*, corpus: str = CORPUS, scale: str = "small", **settings: Any) -> RunConfig:
    """A resolved config of a scale; settings by dotted key, with __ for the dot."""
    mapping: dict[str, Any] = {}
    for key, value in {**SCALES[scale], **{key.replace("__", "."): value for key, value in settings.items()}}.items():
        node = mapping
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return resolve(from_mapping(RunConfig, mapping), corpus=corpus, vocabulary_size=257)


def plan(*configs: RunConfig, scales: Mapping[str, Mapping[str, Any]] = SCALES) -> tuple[PlannedRun, ...]:
    return plan_runs(configs, scales)


def sweep(rates: Iterable[float] = (0.01, 0.1), **settings: Any) -> tuple[PlannedRun, ...]:
    """A planned sweep over learning rates."""
    return plan(*(run(optimizer__learning_rate=rate, **settings) for rate in rates))


def opened(path: Path, runs: tuple[PlannedRun, ...], name: str = "study") -> SweepFolder:
    definition = Sweep(question="Why?", claims={"it": {"kind": "stable_edge_falls_with_n"}})
    ladder = Ladder(name="tiny", scales=SCALES)
    with Locks(path) as locks:
        return open_folder(path, locks, name, definition, runs, ladder, "python -m stability.run")


def refused(path: Path, runs: tuple[PlannedRun, ...], name: str = "study") -> InputError:
    """The InputError by which the folder is refused, after which everything is as it was."""
    before = snapshot(path.parent)
    with pytest.raises(InputError) as caught:
        check_folder(path, name, runs, SCALES)
    assert snapshot(path.parent) == before
    return caught.value


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# --- packs ------------------------------------------------------------------------------------------------------------

RUNS = st.lists(
    st.builds(
        run,
        scale=st.sampled_from(sorted(SCALES)),
        seed=st.integers(0, 2),
        optimizer__learning_rate=st.sampled_from([0.01, 0.1]),
        optimizer__clip_norm=st.sampled_from([None, 1.0, 2.0]),
        model__qk_layernorm=st.sampled_from(["none", "per_head"]),
        training__observe_every=st.sampled_from([5, 10]),
    ),
    min_size=1,
    max_size=12,
)


@given(RUNS)
@settings(deadline=None, max_examples=25)
def test_there_is_one_program_for_each_structure(configs: list[RunConfig]) -> None:
    runs = plan(*configs)
    packs = pack_runs(runs)
    assert len(packs) == len({jax.tree.structure(config) for config in configs})
    assert sorted(map(id, (lane for pack in packs for lane in pack.runs))) == sorted(map(id, runs))
    for pack in packs:
        assert {jax.tree.structure(lane.config) for lane in pack.runs} == {jax.tree.structure(pack.config)}


@given(RUNS, st.randoms())
@settings(deadline=None, max_examples=25)
def test_a_plan_does_not_depend_on_the_order_in_which_runs_are_asked_for(configs: list[RunConfig], random: Any) -> None:
    shuffled = list(configs)
    random.shuffle(shuffled)
    names = [[(r.fingerprint, r.scale, r.arm, r.title) for r in plan(*given_)] for given_ in (configs, shuffled)]
    assert sorted(names[0]) == sorted(names[1])
    places = [(r.config.model.n_params, r.arm, r.config.optimizer.learning_rate, r.config.seed) for r in plan(*configs)]
    assert places == sorted(places)


def test_small_sizes_train_first_then_arm_by_arm_from_low_to_high_learning_rates() -> None:
    configs = [
        run(scale=scale, model__qk_layernorm=norm, optimizer__learning_rate=rate, seed=seed)
        for scale in ("large", "small")
        for norm in ("per_head", "none")
        for seed in (1, 0)
        for rate in (0.1, 0.01)
    ]
    titles = [planned.title for planned in plan(*configs)]
    assert titles[:5] == [
        "qk_layernorm=none small lr 0.01 seed 0",
        "qk_layernorm=none small lr 0.01 seed 1",
        "qk_layernorm=none small lr 0.1 seed 0",
        "qk_layernorm=none small lr 0.1 seed 1",
        "qk_layernorm=per_head small lr 0.01 seed 0",
    ]
    assert [title.split()[1] for title in titles] == ["small"] * 8 + ["large"] * 8


def test_a_ladder_whose_scales_train_for_other_lengths_has_one_arm() -> None:
    scales = {name: {**keys, "training.steps": 10 * keys["model.width"]} for name, keys in SCALES.items()}
    runs = plan(
        *(run(scale=name, training__steps=keys["training.steps"]) for name, keys in scales.items()), scales=scales
    )
    assert [(planned.scale, planned.arm) for planned in runs] == [("small", "default"), ("large", "default")]


# --- one run ----------------------------------------------------------------------------------------------------------


def test_a_run_s_folder_is_named_by_the_run_whatever_sweep_it_is_in() -> None:
    alone = plan(run(seed=3))[0]
    among = next(
        planned
        for planned in plan(run(seed=3), run(seed=3, model__qk_layernorm="none"))
        if planned == replace(alone, arm="qk_layernorm=per_head")
    )
    assert alone.folder_name == f"w32_d1-lr0.01-seed3-{alone.fingerprint}"
    assert among.folder_name == alone.folder_name
    assert among.arm != alone.arm


def test_folder_names_are_different_for_different_runs_and_fit_any_file_system() -> None:
    configs = [run(seed=seed, optimizer__learning_rate=rate) for seed in (0, 1) for rate in (1e-4, 0.3, 0.30000001)]
    names = [planned.folder_name for planned in plan(*configs)]
    assert len(set(names)) == len(configs)
    for name in names:
        assert len(name) < 100
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-.+")


def test_flops_are_what_a_step_s_matrix_products_cost() -> None:
    config = run(scale="large", training__steps=7, training__batch_size=3, training__sequence_length=16)
    width, depth, positions, vocabulary = 64, 2, 16, 257
    block = 4 * width * width + 8 * width * width
    forward = 2 * (depth * block + width * vocabulary) + 2 * 2 * depth * positions * width
    assert flops_per_token(config) == 3 * forward
    assert plan(config)[0].flops == 3 * forward * 7 * 3 * 16


def test_the_plan_tells_size_runs_programs_and_tokens() -> None:
    runs = plan(
        *(
            run(scale=scale, seed=seed, training__steps=50, training__batch_size=4, training__sequence_length=32)
            for scale in SCALES
            for seed in (0, 1, 2)
        )
    )
    heading, small, large, total, memory, time = told(runs).splitlines()
    assert heading.split()[:3] == ["scale", "arm", "N"]
    assert small.split()[:7] == ["small", "default", "12,288", "3", "50", "6.4", "k"]
    assert large.split()[:7] == ["large", "default", "98,304", "3", "50", "6.4", "k"]
    assert total.startswith("6 runs, 2 packs, 2 programs, 38,400 tokens, ")
    assert float(total.split()[-2]) == pytest.approx(sum(planned.flops for planned in runs), rel=0.01)
    assert memory.startswith("Memory: ")
    assert "calibrate=true" in time


def told(runs: Sequence[PlannedRun], unfinished: Sequence[PlannedRun] | None = None, **settings: Any) -> str:
    """The plan in words, on a machine with a gigabyte that is not calibrated, unless the settings say otherwise."""
    defaults = {"layout": Layout("sequential", ""), "budget": Budget(10**9, "here"), "calibration": None}
    return describe(runs, runs if unfinished is None else unfinished, **(defaults | settings))


CALIBRATION = Calibration(
    date="2026-01-01", device="a test", matmul_flops={"float32": 1e9, "bfloat16": 1e9}, seconds_per_step=0.1,
    seconds_per_flop=0.0, seconds_per_byte=0.0, compile_seconds=10.0, compile_seconds_per_block=5.0, start_seconds=0.0,
    largest_error=0.0,
)  # fmt: skip


def test_a_plan_with_lanes_tells_groups_memory_and_time() -> None:
    configs = [run(seed=seed, training__steps=1000, training__validation_sequences=1) for seed in range(10)]
    runs = plan(*configs)
    budget = Budget(program_bytes(configs[0], 4), "as asked", asked=True)
    text = told(runs, layout=Layout("vmap", ""), budget=budget, calibration=CALIBRATION)
    _, row, total, memory, time = text.splitlines()
    assert "  4+3+3  " in row
    assert row.endswith("5:00 min"), "three groups of 1000 steps of 0.1 s"
    assert total.startswith("10 runs, 1 pack, 2 programs, ")
    assert str(budget) in memory
    assert "more than there is" not in memory
    assert time.startswith("Time: about 5:30 min, of it 30 s compiling")
    assert "more than there is" in told(runs, budget=Budget(1000, "here"))


def test_a_plan_tells_what_is_done_and_which_rows_share_a_program() -> None:
    runs = plan(*(run(seed=seed, loss__z_loss=z) for seed in (0, 1) for z in (0.0, 1e-4)))
    heading, first, second, total, *_ = told(runs, runs[1:]).splitlines()
    assert "pack" in heading.split()
    assert "1 of 2" in first
    assert "1 of 2" not in second
    assert total.startswith("3 runs, 1 pack, 1 program, ")
    assert total.endswith("; 1 run of 4 already done")
    assert told(runs, []).splitlines()[-1].endswith("; 4 runs of 4 already done")
    assert max(map(len, told(runs).splitlines())) <= 130


def test_a_long_arm_stays_apart_from_the_numbers_beside_it() -> None:
    kinds = [
        {"optimizer__decayed_roles": ["embedding", "head"], "loss__z_loss": 0.0, "model__qk_layernorm": "whole_width"},
        {"optimizer__decayed_roles": ["gain"]},
    ]
    for line, planned in zip(told(plan(*(run(**kind) for kind in kinds))).splitlines()[1:], kinds, strict=False):
        assert " 12,288 " in line, planned


# --- the sweep's folder -----------------------------------------------------------------------------------------------


def test_looking_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results" / "study"
    assert check_folder(path, "study", sweep(), SCALES) is None
    assert not list(tmp_path.iterdir())
    opened(path, sweep())
    before = snapshot(tmp_path)
    manifest = check_folder(path, "study", sweep(rates=[0.3]), SCALES)
    assert manifest is not None
    assert snapshot(tmp_path) == before


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert check_folder(tmp_path, "study", sweep(), SCALES) is None


EXTENSIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same command again": ({}, {}),
    "further learning rates": ({}, {"rates": [0.3, 1.0]}),
    "another seed": ({"seed": 0}, {"seed": 1}),
    "another data seed": ({"data__seed": 0}, {"data__seed": 1}),
    "another size": ({"scale": "small"}, {"scale": "large"}),
    "a size without a name": ({}, {"model__width": 48}),
    "seen more often": ({}, {"training__observe_every": 1}),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_sweep_is_extended_along_what_tells_its_runs_apart(tmp_path: Path, name: str) -> None:
    first, second = (sweep(**arguments) for arguments in EXTENSIONS[name])
    path = tmp_path / "study"
    before = opened(path, first)
    after = opened(path, second)
    assert after == before
    manifest = read_json(path / "sweep.json")
    assert manifest["sweep_id"] == before.sweep_id
    assert len(manifest["commands"]) == 2
    assert set(manifest["runs"]) == {planned.fingerprint for planned in (*first, *second)}, "every run planned so far"


def arms(*norms: str) -> tuple[PlannedRun, ...]:
    return plan(*(run(model__qk_layernorm=norm) for norm in norms))


def test_a_sweep_is_extended_along_an_axis_of_arms(tmp_path: Path) -> None:
    path = tmp_path / "study"
    opened(path, arms("none", "per_head"))
    opened(path, arms("none", "per_head", "whole_width"))
    opened(path, arms("whole_width"))
    manifest = read_json(path / "sweep.json")
    assert manifest["settings"]["model.qk_layernorm"] == ["none", "per_head", "whole_width"]
    assert "optimizer.learning_rate" not in manifest["settings"]


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("training.steps", 50, 60),
        ("training.steps", 50, 1000),
        ("training.batch_size", 16, 32),
        ("model.qk_layernorm", "per_head", "none"),
        ("optimizer.clip_norm", 1.0, None),
        ("loss.z_loss", 0.0, 1e-4),
    ],
)
def test_another_value_of_what_the_sweep_holds_fixed_is_another_sweep(
    tmp_path: Path, key: str, old: Any, new: Any
) -> None:
    path, setting = tmp_path / "study", key.replace(".", "__")
    opened(path, sweep(**{setting: old}))
    error = refused(path, sweep(**{setting: new}))
    assert error.key == key
    assert error.value == str(new)
    assert f"{key}={old}" in error.problem
    assert "output_dir=" in error.fix
    assert f"{key}=" in error.fix


def test_warm_up_given_anew_is_another_sweep(tmp_path: Path) -> None:
    opened(tmp_path / "study", sweep(schedule__warmup_steps=10))
    assert refused(tmp_path / "study", sweep(schedule__warmup_steps=20)).key == "schedule.warmup_steps"


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "study", sweep())
    error = refused(tmp_path / "study", sweep(corpus="f" * 64))
    assert error.key == "data.corpus"
    assert CORPUS[:16] in error.problem
    assert "output_dir=" in error.fix


def test_another_sweep_s_folder_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "study", sweep())
    error = refused(tmp_path / "study", sweep(), name="other")
    assert error.key == "output_dir"
    assert "'study'" in error.problem
    assert "'other'" in error.problem


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.tex").write_text("...")
    assert refused(tmp_path / "study", sweep()).key == "output_dir"


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "sweep.json").write_text('{"schema_version"')
    assert "not valid JSON" in refused(tmp_path / "study", sweep()).problem


@pytest.mark.parametrize("below", ["", "deeper", "much/deeper"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("...")
    assert refused(tmp_path / "file" / below, sweep()).key == "output_dir"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        check_folder(Path("/proc/stability"), "study", sweep(), SCALES)
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(InputError, match="cannot be written"):
            check_folder(tmp_path / "study", "study", sweep(), SCALES)


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / ("x" * 300), sweep()).key == "output_dir"


def test_two_folders_of_the_same_runs_have_different_ids(tmp_path: Path) -> None:
    a, b = opened(tmp_path / "a", sweep()), opened(tmp_path / "b", sweep())
    assert a.sweep_id != b.sweep_id
    planned = sweep()[0]
    assert a.run(planned).path == tmp_path / "a" / "runs" / planned.folder_name
