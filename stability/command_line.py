"""What the entry points share: where the configs are, errors as people read them, and a faster allocator."""

import argparse
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from stability.errors import EXIT_INTERRUPTED, InputError
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


def unreadable(error: OSError, key: str = "file") -> InputError:
    """What the system refuses to do with a file that the command names."""
    problem = f"cannot be used ({error.strerror or error})"
    return InputError(key, error.filename, problem, "Check that it is there, that it is a file, and yours to read.")


class Parser(argparse.ArgumentParser):
    """A parser of `python -m stability.NAME ...` whose errors are InputErrors.

    Args:
        name: the command's.
        description: what it does, in a sentence.
        epilog: its keys and examples, shown as they are written.
    """

    def __init__(self, name: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"python -m stability.{name}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """What argparse has to say of the words; called by argparse."""
        raise bad_words(message, self.prog)


def bad_words(message: str, program: str) -> InputError:
    """What argparse says of a command's words, as our users read it: `unrecognized arguments: --nope`."""
    what, _, words = message.rpartition(": ")
    return InputError("argument", words, what or "is not understood", f"`{program} --help` shows what there is.")


def key_values(parser: Parser, arguments: Sequence[str] | None, first: str) -> dict[str, str]:
    """The words KEY=VALUE of a command line.

    Args:
        parser: says what to do with other words, such as --help.
        arguments: as typed; None takes those of this process.
        first: the key that a word without one most likely lacks.

    Raises:
        InputError: a word is not KEY=VALUE.
    """
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    words: list[str] = parser.parse_args(arguments).settings
    for word in words:
        if word.find("=") < 1:
            raise InputError("argument", word, "is not KEY=VALUE", f"Did you mean {first}={word.lstrip('=')}?")
    return dict(word.split("=", 1) for word in words)


def quoted(text: str) -> str:
    """A text as Hydra reads it whole, whatever it holds; one in quotes has its own quotes after backslashes."""
    escaped = re.sub(r"(\\*)(')", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


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


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C end the process at once, without a word, while modules are imported.

    As an exception it may become another one: a compiled module that is interrupted raises ImportError (jaxlib's does).
    The handler is Python's, not the system's, because Polars chains its own to the one that it finds, and would ignore
    a signal from then on where there was none.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # ignored by `nohup`, or someone's own
    ):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
    typed = sys.argv
    try:
        # Said outright: of a command with an axis that cannot be composed Hydra would say only that it is no sweep.
        sys.argv = [*typed, *(["--multirun"] if _is_sweep(typed[1:]) else [])]
        with only_values():
            main()
    except InputError as error:
        return report(error)
    except (HydraException, OmegaConfBaseException) as error:
        return report(_in_our_words(error, typed[1:]))
    except SystemExit as exit_:  # how Hydra ends after --help and the like
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        print("\nStopped at once. The same command goes on from the last checkpoints.", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        sys.argv = typed
    return codes[-1] if codes else 0


def report(error: Exception) -> int:
    """Say what is wrong in one paragraph on stderr; the exit code for bad input."""
    if os.environ.get(TRACEBACK):
        import traceback

        tell("".join(traceback.format_exception(error)), sys.stderr)
    print(shown(f"error: {' '.join(str(error).split())}", lines=False), file=sys.stderr)
    return EXIT_BAD_INPUT


NOT_USED = ("config_name", "config_path", "config_dir", "run", "experimental_rerun")
"""Options of Hydra by which a command would leave this program's configs, or write files of Hydra's own."""


ELSE = ("help", "hydra_help", "cfg", "multirun", "shell_completion", "info")
"""Options by which Hydra does something else than run, or a sweep anyway."""


def _is_sweep(words: Sequence[str]) -> bool:
    """Whether a command is to run rather than to show something.

    Raises:
        InputError: a word of which Hydra would say nothing useful, or which makes it write files.
    """
    from hydra._internal.utils import get_args_parser

    parser: Any = get_args_parser()
    parser.error = _refuse_option
    given = parser.parse_args(words)
    for option in NOT_USED:
        if value := getattr(given, option):
            fix = "Leave it out; your own files go into sweeps/ and conf/ of the working folder."
            raise InputError(f"--{option.replace('_', '-')}", value, "is not used here", fix)
    for word in given.overrides:
        key, equals, value = word.partition("=")
        name = key.lstrip("+~")
        if not name or not (equals or key.startswith("~")):
            raise InputError("argument", word, "is not KEY=VALUE", f"Did you mean +sweep={word.lstrip('=')}?")
        if name in GROUPS and NO_NAME.fullmatch(value):
            raise no_choice(name, value)
        if re.match(r"hydra\b", name):
            fix = "Leave it out: a command is always a sweep, and output_dir= says where it goes."
            raise InputError(name, value, "is set by this program", fix)
    return not any(getattr(given, option) for option in ELSE)


GROUPS = ("sweep", "intervention", "ladder", "data", "tracking", "host")
NO_NAME = re.compile(r"null|true|false|[-+]?[0-9.]+(e[-+]?[0-9]+)?", re.IGNORECASE)
"""What Hydra reads as something else than a name."""


def no_choice(group: str, name: object) -> InputError:
    """The error for a name that no config of a group has, with those that there are."""
    ours = config_folders()
    folders = (ours.sweeps, ours.conf, Path.cwd() / "sweeps", Path.cwd() / "conf")
    options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    where = f"{ours.sweeps}, {ours.conf}, and sweeps/ and conf/ in {Path.cwd()}"
    fix = f"Choose one of: {', '.join(options) or 'none'} (looked in {where})."
    return InputError(group, name, f"there is no such {group}", fix)


def _refuse_option(message: str) -> NoReturn:
    raise bad_words(message, "python -m stability.run")


def _in_our_words(error: Exception, arguments: Sequence[str]) -> InputError:
    """An error of Hydra or OmegaConf with the key, the value and the fix."""
    from hydra.errors import MissingConfigException, OverrideParseException

    causes = list(_causes(error))
    if ours := next((cause for cause in causes if isinstance(cause, InputError)), None):
        return ours
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return no_choice(group, name)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        problem = "cannot be read: " + str(error).splitlines()[0]
        return InputError(key or "argument", value, problem, "Put quotes around what is text: KEY=\"'VALUE'\".")
    if match := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", str(error)):
        return _unknown(match[1], _given(match[1], arguments), "append to your default list" in str(error))
    return _of_a_value(causes, arguments)


def _unknown(key: str, value: str, is_group: bool) -> InputError:
    from stability.config import RunConfig
    from stability.launching.grid import OTHER_KEYS
    from stability.typed import unknown_key

    if is_group:
        return InputError(key, value, "stands in no defaults list, so it has to be added", f"Use +{key}={value}")
    return unknown_key(RunConfig, key, value, also=OTHER_KEYS)


def _of_a_value(causes: Sequence[BaseException], arguments: Sequence[str]) -> InputError:
    """What OmegaConf says of one value, or Hydra of one word: which one it is, and the gist of all that they say."""
    said: list[str] = []
    for cause in causes:
        lines = [line.strip() for line in str(cause).splitlines()]
        text = " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
        if text and not any(text.rstrip(".") in other for other in said):
            said.append(text.rstrip("."))
    problem = ". ".join(said) or "cannot be read"
    for cause in causes:
        if key := getattr(cause, "full_key", None):
            value = _given(key, arguments) or _as_written(cause)
            return InputError(key, value, f"cannot be used: {problem}", "Mend it, or write the value.")
    word = next((word for word in arguments if word.lstrip("+~").split("=", 1)[0] in problem), " ".join(arguments))
    key, equals, value = word.lstrip("+~").partition("=")
    fix = "`python -m stability.run --help` shows how a command is written."
    return InputError(key if equals or word else "argument", value, f"cannot be used: {problem}", fix)


def _as_written(error: BaseException) -> object:
    """The text in the place of which OmegaConf found no value."""
    node = getattr(error, "child_node", None)
    value = getattr(error, "value", None)
    return value if node is None else getattr(node, "_value", lambda: value)()


def _given(key: str, arguments: Sequence[str]) -> str:
    """What the command line says for a key; empty where it does not."""
    return next((word.split("=", 1)[1] for word in arguments if word.lstrip("+~").startswith(f"{key}=")), "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised for, and so on; OmegaConf does not always say `from`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
