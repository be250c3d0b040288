"""The files of launch/: their commands compose, the shell and the engines find nothing wrong with them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Command

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
SKY = LAUNCH / "sky.yaml"
_COMMAND = re.compile(r"python -m stability\.run(?P<words>(?:[^\"&|;\n]|\\\n)*)")


def commands(path: Path) -> list[list[str]]:
    """The words after `python -m stability.run` of each command in a file, its own variables filled in."""
    text = path.read_text(encoding="utf-8")
    values: Mapping[str, Any] = {}
    if path.suffix == ".yaml":
        task = yaml.safe_load(text)
        text, values = task["run"], task["envs"]
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    filled = re.sub(r"\$\{?(\w+)\}?", lambda match: str(values.get(match[1], "")), code)
    return [shlex.split(match["words"].replace("\\\n", " ")) for match in _COMMAND.finditer(filled)]


@pytest.mark.parametrize("path", [*SCRIPTS, SKY], ids=lambda path: path.name)
def test_a_file_ends_in_the_same_command_which_composes(path: Path, command: Command) -> None:
    (words,) = commands(path)
    assert any(word.startswith("+sweep=") for word in words)
    assert any(word.startswith("host=") for word in words)
    outcome = command(*words, "dry_run=true")
    assert outcome.code == 0, outcome.err
    assert "Dry run" in outcome.out


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_shell(path: Path) -> None:
    assert path.stat().st_mode & 0o111, "it can be executed"
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_a_tpu_script_says_what_it_lacks_and_quotes_what_it_is_given(tmp_path: Path) -> None:
    """With a stand-in for gcloud that notes its words."""
    stand_in = tmp_path / "gcloud"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$NOTED"\n')
    stand_in.chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_vm.sh", checkout / "launch")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    noted = tmp_path / "noted"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NOTED": str(noted)}
    script = [checkout / "launch/tpu_vm.sh", "data.path='a b'"]
    lacking = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert lacking.returncode
    assert "TPU=NAME" in lacking.stderr
    subprocess.run(script, env=environment | {"TPU": "mine", "ZONE": "z"}, check=True)
    (trains,) = [line for line in noted.read_text().splitlines() if "stability.run" in line]
    assert "--worker=all" in trains
    assert shlex.split(trains.split("host=tpu_v5e")[1]) == ["data.path='a b'"], "the shell there sees the same word"


def test_the_sky_task_uses_the_variables_it_declares_and_names_no_site() -> None:
    task = yaml.safe_load(SKY.read_text(encoding="utf-8"))
    used = set(re.findall(r"\$\{?([A-Z_]+)\}?", f"{task['setup']}{task['run']}{task['file_mounts']}"))
    assert used == task["envs"].keys()
    assert task["envs"]["RESULTS_BUCKET"] is None, "whoever launches names it"


def test_skypilot_accepts_the_task() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    task = yaml.safe_load(SKY.read_text(encoding="utf-8"))
    sky.Task.from_yaml_config(task, env_overrides=[("RESULTS_BUCKET", "any")])
    for accelerator in ("H100:8", "tpu-v5litepod-8", "tpu-v6e-8"):
        sky.Resources(accelerators=accelerator)
