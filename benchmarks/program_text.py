"""What an optimised program does, read from its text: collectives by kind and bytes, and branches that are left."""

import re
from collections import Counter
from collections.abc import Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<shape>.+?) (?P<kind>[a-z][a-z-]*)\((?P<rest>.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|([\w.%-]+))")
ARRAY = re.compile(r"\b(pred|[subf]f?\d+)\[([\d,]*)\]")


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program; the one that is entered is called ENTRY."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            lines = found["ENTRY" if line.startswith("ENTRY") else line.split()[0].lstrip("%")] = []
        elif line.startswith(" "):
            lines.append(line)
    return found


def times(text: str, branches: bool = True) -> Iterator[tuple[re.Match[str], int]]:
    """Every instruction that a call of the program comes to, and how often it does.

    A loop whose number of rounds is no constant counts as one round: `advance` has one, over its steps.

    Args:
        text: of an optimised program.
        branches: whether those are taken. Ours are observation's.
    """
    parts = computations(text)

    def walk(name: str, often: int) -> Iterator[tuple[re.Match[str], int]]:
        for line in parts.get(name, []):
            instruction = INSTRUCTION.match(line)
            if instruction is None:
                continue
            yield instruction, often
            if instruction["kind"] == "conditional" and not branches:
                continue
            rounds = _rounds(parts, line) if instruction["kind"] == "while" else 1
            for several, single in CALLED.findall(line):
                for one in (several or single).split(", "):
                    yield from walk(one.lstrip("%"), often * rounds)

    return walk("ENTRY", 1)


def _rounds(parts: dict[str, list[str]], line: str) -> int:
    """How often a loop goes round: what its condition compares a counter with, if that is a constant."""
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = parts.get(condition[1], []) if condition else []
    bounds = [found[1] for one in lines if (found := re.search(r"= s32\[\]\S* constant\((\d+)\)", one))]
    return int(bounds[0]) if len(bounds) == 1 else 1


def size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, without padding."""
    total = 0
    for kind, dimensions in ARRAY.findall(shape):
        count = 1
        for one in filter(None, dimensions.split(",")):
            count *= int(one)
        total += count * BYTES.get(kind, 4)
    return total


def collectives(text: str, branches: bool = True) -> dict[str, dict[str, float]]:
    """By kind of collective: how many a step executes, and megabytes of their results on each device; see `times`.

    Upper bounds on a TPU, whose compiler may write one that it spreads over several instructions as often.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for instruction, often in times(text, branches):
        kind = instruction["kind"].removesuffix("-start")
        if kind in COLLECTIVES:
            counts[kind] += often
            sizes[kind] += often * size(instruction["shape"])
    return {kind: {"count": counts[kind], "mb": round(sizes[kind] / 1e6, 1)} for kind in sorted(counts)}


def branches_left(text: str) -> int:
    """Branches that are left in a program's text."""
    return sum(1 for line in text.splitlines() if " conditional(" in line)
