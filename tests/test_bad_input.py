"""Bad input is refused: exit code 2, one paragraph with key, value and fix, within seconds, and nothing is written.

The default suite runs a part of the commands of `tests.bad_input`, inside this process. `pytest -m slow
tests/test_bad_input.py` runs every one as a command of its own, two at a time, and writes what it measured into the
file that STABILITY_BAD_INPUT names; STABILITY_BAD_INPUT_ONE_IN=20 runs a sample.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.reporting import made_with, report
from tests.bad_input import CASES, DERIVED
from tests.bad_input.case import Case, faults, is_root, lay_down, snapshot, unlock

ROOT = Path(__file__).parent.parent
SECONDS = 5.0
"""Within which a command has to say what is wrong: of a core, since a clock also measures who else is at work."""
AT_A_TIME = 2
RESULTS, ONE_IN = "STABILITY_BAD_INPUT", "STABILITY_BAD_INPUT_ONE_IN"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NETRC": os.devnull}

WITHOUT_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: to read and write whatever the modes of files say
    ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Has root obey the modes of files, as everybody does, in the command that follows."""

SPREAD = {"run": 5, "replicate": 3}
"""Of a program's cases the default suite runs one in so many, of others one in two; of the derived ones fewer."""
PROGRAMS = tuple(dict.fromkeys(case.program for case in CASES))
IN_SUITE = [
    *(
        case
        for name in PROGRAMS
        for case in [one for one in CASES if one.program == name and one.in_suite][:: SPREAD.get(name, 2)]
    ),
    *DERIVED[::19],
]


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    names = Counter(case.name for case in (*CASES, *DERIVED))
    assert len(names) >= 150
    assert names.most_common(1)[0][1] == 1


@pytest.mark.parametrize("case", IN_SUITE, ids=[case.name[:100] for case in IN_SUITE])
def test_bad_input_is_refused_in_one_paragraph_and_changes_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.locked and is_root():
        pytest.skip("nothing is locked to root; the campaign runs it without root's privileges")
    for key, value in {**OFFLINE, "STABILITY_NO_REEXECUTION": "1"}.items():
        monkeypatch.setenv(key, value)
    for key in ("STABILITY_TRACEBACK", "HYDRA_FULL_ERROR", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(sys, "argv", [case.program, *case.words])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", f"stability.{case.program}", *case.words])
    lay_down(case, tmp_path)
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        code = importlib.import_module(f"stability.{case.program}").main()
        assert faults(case, code, capsys.readouterr().err, snapshot(tmp_path) == before) == []
    finally:
        unlock(case, tmp_path)


# --- the campaign -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """How a command refused: what was wrong with that, and how long it took."""

    case: Case
    faults: list[str]
    seconds: float
    cpu_seconds: float
    message: str


def run(case: Case, cache: Path) -> Measured:
    """Run one case as its own command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_down(case, folder)
        before = snapshot(folder)
        environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
        environment.pop("WANDB_API_KEY", None)
        first = [sys.executable, *(("-c", WITHOUT_PRIVILEGES) if case.locked and is_root() else ())]
        command = [*first, "-m", f"stability.{case.program}", *case.words]
        try:
            with tempfile.TemporaryFile() as err:
                began = time.perf_counter()
                process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=err)
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - began
                process.returncode = os.waitstatus_to_exitcode(status)
                err.seek(0)
                message = err.read().decode(errors="replace")
            found = faults(case, process.returncode, message, snapshot(folder) == before)
        finally:
            unlock(case, folder)
    return Measured(case, found, seconds, usage.ru_utime + usage.ru_stime, message.strip())


@pytest.mark.slow
def test_every_bad_command_is_refused_within_seconds(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    everything = [*CASES, *DERIVED][:: int(os.environ.get(ONE_IN, "1"))]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        measured = list(pool.map(lambda case: run(case, cache), everything))
    # Two commands at a time, perhaps on a machine that others use too: who was slow is asked again, alone.
    measured = [run(one.case, cache) if one.seconds > SECONDS else one for one in measured]
    result = summary(measured)
    report(result, Path(os.environ[RESULTS]) if RESULTS in os.environ else None)
    assert result["faults"] == {}
    assert result["most_cpu_seconds"] < SECONDS


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """The campaign's figures."""
    slowest = max(measured, key=lambda one: one.seconds)
    programs = sorted({one.case.program for one in measured})
    return {
        **made_with("none"),
        "command": f"{RESULTS}=FILE python -m pytest -m slow tests/test_bad_input.py -n 0",
        "cases": len(measured),
        "at_a_time": AT_A_TIME,
        "load_average": os.getloadavg()[0],
        "median_cpu_seconds": round(median(one.cpu_seconds for one in measured), 2),
        "most_cpu_seconds": round(max(one.cpu_seconds for one in measured), 2),
        "median_seconds": round(median(one.seconds for one in measured), 2),
        "slowest_seconds": round(slowest.seconds, 2),
        "slowest": slowest.case.name,
        "programs": {
            program: {
                "cases": len(times := [one.seconds for one in measured if one.case.program == program]),
                "median_seconds": round(median(times), 2),
                "slowest_seconds": round(max(times), 2),
            }
            for program in programs
        },
        "faults": {one.case.name: [*one.faults, one.message] for one in measured if one.faults},
    }
