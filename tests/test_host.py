"""Hosts: every file composes and changes nothing of what a run is; JAX is told and checked."""

import os
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml
from conftest import TINY, Command
from quick import compile_quickly

from stability.command_line import config_folders
from stability.config import RunConfig, fingerprint, scientific
from stability.errors import InputError
from stability.launching import host as hosts
from stability.launching.host import check_host, prepare_host
from stability.launching.memory import program_bytes, with_fitted_micro_batch
from stability.launching.settings import Host
from stability.tracking.files import read_json
from stability.training import lanes
from stability.typed import from_mapping
from tests.test_interventions import compose

FILES = sorted(path.stem for path in (config_folders().conf / "host").glob("*.yaml"))
SWEEP = ("+sweep=qk_layernorm", "ladder=paper", "seed=0,1")


def test_there_are_hosts() -> None:
    assert {"auto", "cpu", "gpu", "gpu8", "tpu_v5e", "tpu_v6e"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_host_trains_the_same_runs(name: str) -> None:
    """Fingerprints, and so which runs there are, do not depend on the host; what a host says is of the right type."""
    here, anywhere = compose(*SWEEP, f"host={name}"), compose(*SWEEP)
    assert [fingerprint(config) for config in here.configs] == [fingerprint(config) for config in anywhere.configs]
    assert [scientific(config) for config in here.configs] == [scientific(config) for config in anywhere.configs]
    assert here.execution.host.name == name
    for flag in here.execution.host.xla_flags:
        assert hosts.FLAG.fullmatch(flag)


@pytest.mark.parametrize("name", FILES)
def test_a_host_chooses_nothing_scientific(name: str) -> None:
    keys = set(yaml.safe_load((config_folders().conf / "host" / f"{name}.yaml").read_text()))
    assert keys <= {"host", "lanes", "mesh", "compute"} or name == "auto"


FLAGS = [
    "--xla_gpu_dump_to=FOLDER/x",
    "--xla_dump_to=x",
    "--xla_gpu_autotune_results=results.txt",
    "--xla_gpu_kernel_cache_file=/tmp/x",
    "xla_gpu_x=true",
    "--xla_gpu_x",
    "",
]


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_that_may_name_files_are_refused(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hosts.XLA_FLAGS, "--xla_a=1")
    with pytest.raises(InputError, match=r"host\.xla_flags"):
        prepare_host(Host(xla_flags=(flag,)))
    assert os.environ[hosts.XLA_FLAGS] == "--xla_a=1"


def test_flags_are_added_to_those_of_the_environment_which_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hosts.XLA_FLAGS, "--xla_gpu_a=1 --xla_b=c")
    prepare_host(Host(xla_flags=("--xla_gpu_a=2", "--xla_gpu_d=true", "--xla_gpu_e=FUSION,+CUBLAS")))
    assert os.environ[hosts.XLA_FLAGS] == "--xla_gpu_a=1 --xla_b=c --xla_gpu_d=true --xla_gpu_e=FUSION,+CUBLAS"


@pytest.mark.parametrize(
    ("host", "key"),
    [(Host(name="gpu", platform="gpu"), "gpu"), (Host(platform="tpu"), "tpu"), (Host(devices=3), "devices")],
    ids=str,
)
def test_another_machine_is_refused(host: Host, key: str) -> None:
    with pytest.raises(InputError, match=key):
        check_host(host)


def test_this_machine_is_taken() -> None:
    check_host(Host(name="cpu", platform="cpu", devices=jax.device_count()))


def test_the_command_refuses_another_machine_at_once_but_plans_for_it(command: Command) -> None:
    refused = command(*TINY, "host=gpu")
    assert (refused.code, "host=gpu: is for a gpu" in refused.err) == (2, True)
    planned = command(*TINY, "host=gpu", "dry_run=true")
    assert planned.code == 0


def test_a_sweep_goes_on_on_another_kind_of_host(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun with one way of computing, extended with another: nothing twice, and the curves say so."""
    monkeypatch.setattr(lanes, "compile_program", compile_quickly)
    assert command(*TINY, "output_dir=here", "seed=0,1").code == 0
    more = command(*TINY, "output_dir=here", "seed=0,1,2", "compute.micro_batch=2", "compute.attention=blockwise")
    assert more.code == 0
    assert "3 runs, 2 already done" in more.out + more.err
    summary = read_json(Path("here/summary.json"))
    warned = [line for line in summary["warnings"] if "The runs mix" in line]
    assert any("compute.attention: blockwise, plain" in line for line in warned)
    assert any("compute.micro_batch: 2, None" in line for line in warned)


def test_programs_are_kept_where_the_command_says(tmp_path: Path) -> None:
    """Apart by processor there too; what the environment chose before holds."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        prepare_host(Host(compilation_cache=str(tmp_path / "programs")))
        chosen = jax.config.jax_compilation_cache_dir
        assert Path(chosen).parent == tmp_path / "programs"
        prepare_host(Host(compilation_cache=str(tmp_path / "others")))
        assert jax.config.jax_compilation_cache_dir == chosen
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("source", ["sweeps/sweep", "conf/host"])
def test_a_file_may_not_choose_the_programs_to_execute(source: str, command: Command, tmp_path: Any) -> None:
    folder = tmp_path / source
    folder.mkdir(parents=True)
    (folder / "theirs.yaml").write_text("# @package _global_\nhost: {compilation_cache: x}\n")
    word = "+sweep=theirs" if "sweep" in source else "host=theirs"
    refused = command(*TINY, word)
    assert (refused.code, "host.compilation_cache" in refused.err) == (2, True)


def test_the_micro_batch_follows_the_memory() -> None:
    given = {"compute": {"micro_batch": "auto"}, "data": {"vocabulary_size": 256}}
    config = from_mapping(RunConfig, given)
    assert config.micro_batch == config.training.batch_size == 16
    whole = program_bytes(config, 1)
    assert with_fitted_micro_batch(config, whole).micro_batch == 16
    half = with_fitted_micro_batch(config, whole - 1)
    assert half.micro_batch == 8
    assert program_bytes(half, 1) < whole
    assert with_fitted_micro_batch(config, 0).micro_batch == 1
    assert with_fitted_micro_batch(config, 0, data=2, fsdp=2).micro_batch == 4
    asked = from_mapping(RunConfig, {**given, "compute": {"micro_batch": 5}})
    assert with_fitted_micro_batch(asked, 0).micro_batch == 4, "at most 5, and a divisor of the batch"
