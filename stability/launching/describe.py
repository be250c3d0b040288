"""The plan as people read it: for each scale and arm what its runs are, need and take. Compiles and writes nothing."""

import os
from collections import Counter
from collections.abc import Sequence

from stability.launching.calibration import Calibration
from stability.launching.devices import Layout
from stability.launching.memory import Budget, activation_bytes, amount, state_bytes
from stability.launching.plan import Pack, PlannedRun, group_sizes, pack_runs
from stability.tracking.console import counted, duration
from stability.untrusted.printable import printable


def describe(
    runs: Sequence[PlannedRun],
    unfinished: Sequence[PlannedRun],
    layout: Layout,
    budget: Budget,
    calibration: Calibration | None,
) -> str:
    """A table with a line for each scale and arm, and what it comes to.

    Tokens, FLOPs, state (parameters and optimizer) and activations are those of one run, memory is that of the program
    that trains `lanes` of them at once; time is the row's runs', compiling left out. A resumed run counts in full.

    Args:
        runs: the whole sweep, at least one.
        unfinished: those of them to train.
        layout: how lanes run, and where.
        budget: what memory there is.
        calibration: what time is foretold from; None leaves it out.
    """
    packs = pack_runs(unfinished)
    groups = [group_sizes(len(pack.runs), layout.most_lanes(pack.config, budget.limit)) for pack in packs]
    seats = {run.fingerprint: i for i, pack in enumerate(packs) for run in pack.runs}
    seconds = [_seconds(pack, sizes, calibration) for pack, sizes in zip(packs, groups, strict=True)]
    rows: dict[tuple[str, str, int], list[PlannedRun]] = {}
    for run in runs:
        rows.setdefault((run.scale, run.arm, run.config.training.steps), []).append(run)
    shared = len(packs) < sum(any(run.fingerprint in seats for run in members) for members in rows.values())
    table = [_header(shared, calibration is not None)]
    for members in rows.values():
        places = [seats[run.fingerprint] for run in members if run.fingerprint in seats]
        table.append(_cells(members, places, groups, seconds, layout, shared, calibration is not None))
    lines = _aligned(table)
    programs = sum(_programs(sizes, layout) for sizes in groups)
    total = [counted(len(unfinished), "run"), counted(len(packs), "pack"), counted(programs, "program")]
    tokens, flops = sum(run.config.tokens for run in unfinished), sum(run.flops for run in unfinished)
    lines.append(", ".join([*total, f"{tokens:,} tokens", f"{flops:.2e} FLOPs"]))
    if done := len(runs) - len(unfinished):
        lines[-1] += f"; {counted(done, 'run')} of {len(runs):,} already done"
    if packs:
        lines.append(_memory(packs, groups, layout, budget))
        lines.append(_time(packs, groups, seconds, layout, calibration))
    return "\n".join(lines)


def _header(shared: bool, timed: bool) -> list[str]:
    names = ["scale", "arm", "N", "runs", "steps", "tokens", "FLOPs", "state", "activations", "lanes", "memory"]
    return [*names[:9], *(["pack"] if shared else []), *names[9:], *(["time"] if timed else [])]


def _cells(
    members: Sequence[PlannedRun],
    places: Sequence[int],
    groups: Sequence[Sequence[int]],
    seconds: Sequence[float],
    layout: Layout,
    shared: bool,
    timed: bool,
) -> list[str]:
    """One row; `places` are the packs of those of its runs that are still to train."""
    run = members[0]
    config, todo, packs = run.config, len(places), sorted(set(places))
    cells = [
        run.scale,
        run.arm,
        f"{config.model.n_params:,}",
        str(todo) if todo == len(members) else f"{todo} of {len(members)}",
        str(config.training.steps),
        _large(config.tokens),
        f"{run.flops:.2e}",
        amount(state_bytes(config)),
        amount(activation_bytes(config)),
    ]
    if shared:
        cells.append(",".join(str(pack + 1) for pack in packs) or "-")
    largest = max((max(groups[pack]) for pack in packs), default=0)
    cells += [
        _lanes(groups[packs[0]], layout) if packs else "-",
        amount(layout.memory(config, largest)) if packs else "-",
    ]
    if timed:
        cells.append(duration(sum(seconds[place] / sum(groups[place]) for place in places)) if packs else "-")
    return cells


def _lanes(sizes: Sequence[int], layout: Layout) -> str:
    """The groups of a pack: `7`, `4+3+3`, `142 x 7`; one number where all share a program with so many seats."""
    counts = Counter(sizes)
    if len(sizes) == 1 or max(sizes) == 1 or layout.strategy == "sharded":
        return str(max(sizes))
    if len(sizes) <= 3:
        return "+".join(map(str, sizes))
    return " + ".join(f"{count} x {size}" for size, count in counts.items())


def _large(count: int) -> str:
    """A count to three digits: 410 k, 13.1 G."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need; words to the left, numbers to the right."""
    table = [[printable(cell, lines=False) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _memory(packs: Sequence[Pack], groups: Sequence[Sequence[int]], layout: Layout, budget: Budget) -> str:
    """What the largest program needs; of how much, where that decides anything."""
    needed = max(layout.memory(pack.config, max(sizes)) for pack, sizes in zip(packs, groups, strict=True))
    line = f"Memory: {amount(needed)} at most at a time, by an estimate"
    if needed > budget.limit:
        return f"{line}: more than there is ({budget}). Whether it fits is known once it is compiled, before training."
    if layout.strategy == "vmap" or budget.asked:
        line += f", of {budget}"
    return line + "."


def _programs(sizes: Sequence[int], layout: Layout) -> int:
    """How many programs a pack's groups take."""
    return len({layout.program_size(size, max(sizes)) for size in sizes})


def _seconds(pack: Pack, sizes: Sequence[int], calibration: Calibration | None) -> float:
    if calibration is None:
        return 0.0
    counts = Counter(sizes)
    return sum(count * calibration.run_seconds(pack.config, size) for size, count in counts.items())


def _time(
    packs: Sequence[Pack],
    groups: Sequence[Sequence[int]],
    seconds: Sequence[float],
    layout: Layout,
    calibration: Calibration | None,
) -> str:
    """How long it takes, and how that is known."""
    if calibration is None:
        return "Time: this machine is not calibrated; calibrate=true does it, in about a minute."
    compiling = sum(
        _programs(sizes, layout) * calibration.program_seconds(pack.config)
        for pack, sizes in zip(packs, groups, strict=True)
    )
    cores = os.cpu_count() or 1
    busy = f", which were busy ({calibration.others:g} processes)" if calibration.others > cores / 2 else ""
    return (
        f"Time: about {duration(sum(seconds) + compiling)}, of it {duration(compiling)} compiling what is not in the "
        f"cache, by the calibration of {calibration.date} on {calibration.device}{busy}."
    )
