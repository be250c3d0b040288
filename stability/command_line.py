"""What the entry points share: where the configs are, errors as people read them, and a faster allocator."""

import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stability.errors import InputError
from stability.untrusted.printable import shown, tell
from stability.untrusted.secrets import redacted

EXIT_BAD_INPUT = 2
TRACEBACK = "STABILITY_TRACEBACK"
REEXECUTED, NO_REEXECUTION = "STABILITY_REEXECUTED", "STABILITY_NO_REEXECUTION"


class ConfigFolders(NamedTuple):
    """The project's own configs."""

    conf: Path
    sweeps: Path


def config_folders() -> ConfigFolders:
    """Where conf/ and sweeps/ are: inside the package in a wheel, beside it in a checkout or an editable install."""
    package = Path(__file__).resolve().parent
    for root in (package / "_configs", package.parent):
        if (root / "conf" / "run.yaml").is_file():
            return ConfigFolders(root / "conf", root / "sweeps")
    raise RuntimeError(f"no conf/ beside or inside {package}: the installation is incomplete")


def key_values(words: Sequence[str], first: str) -> dict[str, str]:
    """The words KEY=VALUE of a command line.

    Args:
        words: as typed.
        first: the key that a word without one most likely lacks.

    Raises:
        InputError: a word is not KEY=VALUE.
    """
    for word in words:
        if "=" not in word:
            raise InputError("argument", word, "is not KEY=VALUE", f"Did you mean {first}={word}?")
    return dict(word.split("=", 1) for word in words)


def typed_command() -> str:
    """The command as the user may type it again; keys and tokens in it are hidden, for it is written into records."""
    import shlex

    return shlex.join(["python", *map(redacted, sys.orig_argv[1:])])


def with_transparent_huge_pages() -> None:
    """Start this process again, once, with glibc's allocator on huge pages; does nothing where that is not to be had.

    XLA on CPU frees and faults in its temporary memory at every dispatch; huge pages make a step up to twice as fast.
    glibc reads the setting at start-up only. STABILITY_NO_REEXECUTION=1 opts out.
    """
    if sys.platform != "linux" or {REEXECUTED, NO_REEXECUTION} & os.environ.keys():
        return
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
        return
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not pages.exists() or "[never]" in pages.read_text():
        return
    tunables = [part for part in os.environ.get("GLIBC_TUNABLES", "").split(":") if part]
    if any(part.startswith("glibc.malloc.hugetlb") for part in tunables):
        return
    environment = os.environ | {
        "GLIBC_TUNABLES": ":".join([*tunables, "glibc.malloc.hugetlb=1"]),
        REEXECUTED: "1",
    }
    sys.stdout.flush()
    os.execve(sys.executable, sys.orig_argv, environment)


def run_hydra(config_name: str, task: Callable[..., Any]) -> int:
    """Run a Hydra application of ours, errors told as our users read them; returns the exit code.

    Bad input, ours or Hydra's, is one paragraph on stderr and exit code 2. STABILITY_TRACEBACK=1 shows the traceback.
    """
    plugins = str(Path(__file__).resolve().parent / "_plugins")
    if plugins not in sys.path:
        sys.path.append(plugins)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from stability.config_guard import only_values

    codes: list[int] = []

    def keeping_code(*arguments: Any) -> Any:
        codes.append(task(*arguments))

    # Hydra would print its own digest of an error and exit with 1: have it raise instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    main = hydra.main(version_base="1.3", config_path=str(config_folders().conf), config_name=config_name)(keeping_code)
    try:
        with only_values():
            main()
    except InputError as error:
        return report(error)
    except (HydraException, OmegaConfBaseException) as error:
        return report(_in_our_words(error, sys.argv[1:]))
    except SystemExit as exit_:  # how Hydra ends after --help and the like
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        print("\nStopped at once. The same command goes on from the last checkpoints.", file=sys.stderr)
        return 130
    return codes[-1] if codes else 0


def report(error: Exception) -> int:
    """Say what is wrong in one paragraph on stderr; the exit code for bad input."""
    if os.environ.get(TRACEBACK):
        import traceback

        tell("".join(traceback.format_exception(error)), sys.stderr)
    print(shown(f"error: {_paragraph(error)}", lines=False), file=sys.stderr)
    return EXIT_BAD_INPUT


def _paragraph(error: Exception) -> str:
    """The messages of an error and its causes on one line, without what Hydra says for programmers only."""
    if isinstance(error, InputError):
        return str(error)
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines()]
        text = " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
        if text and text not in parts:
            parts.append(text)
        cause = cause.__cause__
    return ". ".join(part.rstrip(".") for part in parts) + "."


def _in_our_words(error: Exception, arguments: list[str]) -> Exception:
    """Hydra's two commonest errors, an unknown choice and an unknown key, with the key, the value and the fix."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options or []) or "none"
        folders = f"{config_folders().sweeps}, {config_folders().conf}, and sweeps/ and conf/ in {Path.cwd()}"
        return InputError(group, name, f"there is no such {group}", f"Choose one of: {options} (looked in {folders}).")
    if match := re.match(r"Could not override '([^']+)'", str(error)):
        from stability.config import RunConfig
        from stability.launching.grid import EXECUTION_KEYS, SELECTION_KEYS
        from stability.typed import unknown_key

        key = match[1]
        value = next((word.split("=", 1)[1] for word in arguments if word.lstrip("+~").startswith(f"{key}=")), "")
        if "append to your default list" in str(error):
            return InputError(key, value, "stands in no defaults list, so it has to be added", f"Use +{key}={value}")
        return unknown_key(RunConfig, key, value, also=(*EXECUTION_KEYS, *SELECTION_KEYS))
    return error
