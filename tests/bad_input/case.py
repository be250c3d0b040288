"""A bad command: its words, the files that lie there before it, and what its one paragraph must name."""

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Content = str | bytes | Callable[[Path], object] | None
"""Of a file: text, bytes, or what makes it, given its path. None is an empty folder."""
Files = Mapping[str, Content]


@dataclass(frozen=True)
class Case:
    """A command that has to be refused.

    Attributes:
        program: `run`, `analyze`, ...: the command is `python -m stability.PROGRAM`.
        words: what follows.
        named: what the message must hold: key and value, and words of the fix.
        files: path -> content, laid down in the working folder before.
        about: what tells it apart from others of the same words; empty where the words do.
        locked: files and folders that the command's user may not read, or write; means nothing to root.
        in_suite: the default suite runs it too, inside its own process; the campaign runs every one.
    """

    program: str
    words: tuple[str, ...]
    named: tuple[str, ...]
    files: Files = field(default_factory=dict)
    about: str = ""
    locked: Mapping[str, int] = field(default_factory=dict)
    in_suite: bool = True

    @property
    def name(self) -> str:
        """What a person types, and what is wrong with the files."""
        return f"{self.program} {shlex.join(self.words)}" + (f" ({self.about})" if self.about else "")


def cases(program: str, table: Sequence[tuple[str, Sequence[str]]], files: Files | None = None) -> list[Case]:
    """One case for each command line and what it must name; all find the same files."""
    more = ("dry_run=true",) if program == "run" else ()  # one that is not refused must not train
    return [
        Case(
            program,
            (*shlex.split(words), *(word for word in more if "dry_run" not in words)),
            tuple(named),
            files or {},
        )
        for words, named in table
    ]


def files_cases(program: str, words: str, table: Mapping[str, tuple[Files, Sequence[str]]]) -> list[Case]:
    """One case for each set of files, of one command line: what is wrong -> (files, what the message must name)."""
    return [
        Case(program, tuple(shlex.split(words)), tuple(named), files, about) for about, (files, named) in table.items()
    ]


def lay_down(case: Case, folder: Path) -> None:
    """Write the case's files."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    for name, mode in case.locked.items():
        (folder / name).chmod(mode)


def unlock(case: Case, folder: Path) -> None:
    """Let the case's files be read and deleted again."""
    for name in case.locked:
        (folder / name).chmod(stat.S_IRWXU)


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder: what it is, and of files the hash of their content and the time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        readable = stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if readable else ""
        changed = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns  # a lock comes and goes in a sweep's folder
        found[str(path.relative_to(folder))] = f"{status.st_mode:o} {changed} {content}"
    return found


PARAGRAPH = re.compile(r"error: [^\s=][^=]*=.*: \S.*\. \S.*")
"""What a message looks like: KEY=VALUE: what is wrong. What to do."""


PROGRESS = re.compile(r"\[\d+/\d+\] .*")
"""What `stability.prepare` tells of units of work, before it meets a document that is bad."""


def faults(case: Case, code: int, err: str, unchanged: bool) -> list[str]:
    """How a command failed to refuse as it should; empty where it did.

    Args:
        case: the command.
        code: its exit code.
        err: what it wrote to stderr.
        unchanged: whether the files around it are what they were.
    """
    found = [] if code == 2 else [f"exit code {code}"]
    lines = [line for line in err.splitlines() if not PROGRESS.fullmatch(line)]
    if len(lines) != 1 or not PARAGRAPH.fullmatch(lines[0]):
        found.append("not one paragraph of key, value, problem and fix")
    found += [f"{part!r} is not named" for part in case.named if part not in err]
    return found if unchanged else [*found, "files have changed"]


def is_root() -> bool:
    """Whether this process may read and write everything."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
