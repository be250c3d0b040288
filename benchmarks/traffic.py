"""What the kernels of a program compiled for a GPU read and write, from the program's text.

Between products a step is as fast as memory: on an H100, kernels other than products took 0.89 to 0.99 times as long as
their bytes over 85 % of the memory's bandwidth (`REACHED`; docs/lab_notebook.md).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.program_text import computations, size

REACHED = 0.85
"""Of the memory's bandwidth."""
NAMED = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<rest>.*)$")
PRODUCTS = ("matmul", "gemm", "fmha", "conv")
"""In the targets of the library calls that multiply matrices."""
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "conditional"}
"""What moves nothing; and branches, which a quiet step does not take."""


@dataclass(frozen=True)
class Instruction:
    """A line of a computation: `shape` is its result's, `operands` names, `rest` what follows them."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


@dataclass(frozen=True)
class Kernel:
    """A launch: how often a step has it, and bytes that it reads and writes each time."""

    name: str
    times: int
    read: int
    written: int
    is_product: bool
    source: str = field(repr=False, default="")

    @property
    def moved(self) -> int:
        """Bytes, of all times."""
        return self.times * (self.read + self.written)


Computation = Mapping[str, Instruction]


def kernels(text: str) -> list[Kernel]:
    """Every kernel of a quiet step of a program (`advance`, whose loop over steps counts as one round)."""
    parts = {name: dict(_instructions(lines)) for name, lines in computations(text).items()}
    return list(_kernels(parts, "ENTRY", 1))


def _instructions(lines: list[str]) -> Iterator[tuple[str, Instruction]]:
    for line in lines:
        if found := NAMED.match(line):
            shape, call = _split(found["rest"])
            kind, _, arguments = call.partition("(")
            inside = _within(arguments)
            operands = tuple(re.findall(r"%([\w.-]+)", inside))
            rest = arguments[len(inside) :]
            yield found["name"], Instruction(found["name"], shape, kind, operands, rest, bool(found["root"]))


def _split(rest: str) -> tuple[str, str]:
    """The shape at the head of a line, and what follows it; the shape of several arrays is in brackets."""
    if rest.startswith("("):
        end = len(_within(rest[1:])) + 2
        return rest[:end], rest[end + 1 :]
    shape, _, call = rest.partition(" ")
    return shape, call


def _within(text: str) -> str:
    """The text up to the bracket that closes one opened before it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place]
    return text


def _kernels(parts: Mapping[str, Computation], name: str, times: int) -> Iterator[Kernel]:
    here = parts[name]
    for one in here.values():
        if one.kind == "while":
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
            yield from _kernels(parts, _called(one, "body"), times * int(rounds[1] if rounds else 1))
        elif one.kind == "call":
            yield from _kernels(parts, _called(one, "to_apply"), times)
        elif one.kind not in FREE:
            inside = parts[_called(one, "calls")] if one.kind == "fusion" else None
            read, written = _moved(here, one) if inside is None else _moved_by_fusion(inside)
            source = re.search(r'op_name="([^"]*)"', one.rest)
            yield Kernel(one.name, times, read, written, _multiplies(one, inside), source[1] if source else "")


def _called(one: Instruction, how: str) -> str:
    found = re.search(rf"\b{how}=%?([\w.-]+)", one.rest)
    assert found is not None, one
    return found[1]


def _multiplies(one: Instruction, inside: Computation | None) -> bool:
    calls = [one] if inside is None else inside.values()
    targets = (re.search(r'custom_call_target="([^"]*)"', call.rest) for call in calls)
    return any(found and any(word in found[1] for word in PRODUCTS) for found in targets)


def _moved(here: Computation, one: Instruction) -> tuple[int, int]:
    """Bytes read and written by a kernel of a single operation; scratch memory of library calls (s8) not counted."""
    written = size(re.sub(r"s8\[\d*\]", "", one.shape))
    if one.kind in ("dynamic-slice", "slice"):
        return written, written
    if one.kind == "dynamic-update-slice":
        part = size(here[one.operands[1]].shape)
        return part, part
    return sum(size(here[name].shape) for name in one.operands), written


def _moved_by_fusion(inside: Computation) -> tuple[int, int]:
    """Bytes that a fused kernel reads of its parameters, whole or in slices, and writes; in place where it updates."""
    users: dict[str, list[Instruction]] = defaultdict(list)
    for one in inside.values():
        for operand in one.operands:
            users[operand].append(one)
    root = next(one for one in inside.values() if one.is_root)
    results = [inside[name] for name in root.operands] if root.kind == "tuple" else [root]
    written, updated = 0, set()
    for result in (_behind_bitcasts(inside, one) for one in results):
        if result.kind == "dynamic-update-slice":
            written += size(inside[result.operands[1]].shape)
            updated.add(_behind_bitcasts(inside, inside[result.operands[0]]).name)
        else:
            written += size(re.sub(r"s8\[\d*\]", "", result.shape))
    parameters = [one for one in inside.values() if one.kind == "parameter" and one.name not in updated]
    read = sum(min(size(one.shape), _read(one.name, users) or size(one.shape)) for one in parameters)
    return read, written


def _behind_bitcasts(inside: Computation, one: Instruction) -> Instruction:
    while one.kind == "bitcast":
        one = inside[one.operands[0]]
    return one


def _read(name: str, users: Mapping[str, list[Instruction]]) -> int | None:
    """Bytes read of an array of which only slices are taken; None if all of it is."""
    total = 0
    for user in users[name]:
        if user.kind in ("dynamic-slice", "slice", "gather"):
            total += size(user.shape)
        elif user.kind == "bitcast" and (part := _read(user.name, users)) is not None:
            total += part
        else:
            return None
    return total
