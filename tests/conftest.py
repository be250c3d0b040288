"""What tests share: the command line, run inside this process, and a sweep small enough to train in a second."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("stability", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("stability")

# Who starts the tests in the background of a script has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Eight CPU devices, whatever the machine has; a program lies on the first unless a test says otherwise. Now, because
# JAX looks at its devices when the first test module is imported.
jax.config.update("jax_num_cpu_devices", 8)

TINY = [
    "model.width=16",
    "model.depth=1",
    "model.head_dim=8",
    "training.batch_size=4",
    "training.sequence_length=16",
    "training.steps=30",
    "training.validation_sequences=16",
    "tracking=files",
    "figures=[]",
    "report=false",
]
"""Overrides that make any run of the defaults cost milliseconds."""


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what XLA compiles for the whole session: tests train the same few programs, in subprocesses too."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # by all workers
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module")
def strict_numerics() -> Iterator[None]:
    """No silent broadcasting over ranks; products in full float32 on devices that would round them."""
    before = jax.config.jax_numpy_rank_promotion, jax.config.jax_default_matmul_precision
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    yield
    jax.config.update("jax_numpy_rank_promotion", before[0])
    jax.config.update("jax_default_matmul_precision", before[1])


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Run `python -m stability.run ARGUMENTS` in this process, in an empty working directory."""
    from stability.run import main

    monkeypatch.setenv("STABILITY_NO_REEXECUTION", "1")
    monkeypatch.delenv("STABILITY_TRACEBACK", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["stability.run", *arguments])
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "stability.run", *arguments])
        capsys.readouterr()
        code = main()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
