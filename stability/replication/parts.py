"""What the card has of one experiment on one ladder: found in records that are here, or kept from the card as it was.

The records of all experiments need not be on one machine. A part of the card is kept where the records behind it are
not here, or are fewer; its summary.json, beside the card, says which runs it rests on.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stability.errors import InputError
from stability.launching.settings import Sweep
from stability.replication.study import Cost, Study
from stability.tracking.files import read_json
from stability.tracking.record import TERMINAL
from stability.typed import from_mapping


@dataclass(frozen=True)
class Part:
    """An experiment's part of a ladder.

    Attributes:
        runs: fingerprints of the runs with a result, which all else here rests on.
        cost: of these runs.
        summary: the path of summary.json, relative to the card.
        figure: that of the loss by learning rate; None where there was nothing to draw.
        made_with: device, lanes and versions -> every value.
        claims: name -> verdict, numbers and figure.
        seconds: fingerprint -> recorded seconds; empty where the records are not here.
    """

    runs: frozenset[str]
    cost: Cost
    summary: str
    figure: str | None
    made_with: Mapping[str, Sequence[str]]
    claims: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Former:
    """What the card had of an experiment before this command.

    Attributes:
        runs: fingerprints of its runs with a result, of those that the sweep plans now.
        part: what may be kept; None where there was nothing, or it is not of the sweep as it is now.
        why: it may not be kept, in words; empty where it may, or there was nothing.
    """

    runs: frozenset[str] = frozenset()
    part: Part | None = None
    why: str = ""


@dataclass(frozen=True)
class _Summary:
    """What is read of a summary.json."""

    sweep: str
    runs: list[dict[str, Any]]


def former(card: Mapping[str, Any], ladder: str, study: Study, base: Path) -> Former:
    """What the card has of an experiment: see `Former`.

    A part is of the sweep as it is now if all runs that it counts are still planned, and claims and quantities are the
    same. That more runs are planned now makes it partial.

    Args:
        card: as it was read.
        ladder: whose part.
        study: the experiment.
        base: the card's folder, which all its paths are relative to.
    """
    entry = next((sweep for sweep in card["sweeps"] if sweep["name"] == study.name), None)
    part = entry["ladders"].get(ladder) if entry else None
    if entry is None or part is None or part["summary"] is None:
        return Former()
    try:
        summary = from_mapping(_Summary, read_json(base / part["summary"]))
    except (InputError, OSError):
        return Former(why=f"its {part['summary']} is not there, or damaged")
    finished = {row.get("fingerprint") for row in summary.runs if row.get("status") in TERMINAL}
    runs = frozenset(run.fingerprint for run in study.runs if run.fingerprint in finished)
    if len(runs) != part["cost"]["runs"]:
        return Former(runs, why="it does not rest on the runs that the sweep plans now")
    verdicts = {claim["name"]: claim for claim in entry["claims"] if ladder in claim["ladders"]}
    kinds = {name: claim["kind"] for name, claim in verdicts.items()}
    same = kinds == {name: content["kind"] for name, content in study.request.definition.claims.items()}
    if not same or part.get("tests", tests_of(study.request.definition)) != tests_of(study.request.definition):
        return Former(runs, why="the sweep's claims or quantities have changed")
    return Former(
        runs,
        Part(
            runs=runs,
            cost=Cost(**part["cost"]),
            summary=part["summary"],
            figure=part["figure"],
            made_with=part.get("made_with", card["ladders"][ladder]["made_with"]),
            claims={name: claim["ladders"][ladder] for name, claim in verdicts.items()},
        ),
    )


def tests_of(definition: Sweep) -> str:
    """What tells the claims and quantities of a sweep from any others; what the paper states is no part of a test."""
    claims = {
        name: {key: value for key, value in content.items() if key != "paper"}
        for name, content in definition.claims.items()
    }
    text = json.dumps([claims, definition.quantities], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def total(
    studies: Sequence[Study], parts: Mapping[str, Part], earlier: Collection[str], earlier_cost: Mapping[str, Any]
) -> Cost:
    """What all runs behind the card cost together; a run that several experiments share counts once.

    Where all their records are here, these say. Otherwise the runs that the card counted before have the seconds that
    it had for all of them together, for no more is known of what is kept; the others have those of their records. Of a
    run that has left the card since, the seconds among those are taken to be as its FLOPs are.

    Args:
        studies: all experiments.
        parts: name -> its part, of those that have one.
        earlier: fingerprints of runs that the card counted before this command.
        earlier_cost: what it gave for them together.
    """
    flops = {
        run.fingerprint: run.flops
        for study in studies
        for run in study.runs
        if study.name in parts and run.fingerprint in parts[study.name].runs
    }
    here = {name: seconds for part in parts.values() for name, seconds in part.seconds.items()}
    known = flops.keys() & here.keys()
    before = 0.0
    if len(known) < len(flops):
        known -= set(earlier)
        share = sum(flops[name] for name in flops if name in earlier) / earlier_cost["flops"]
        before = share * earlier_cost["seconds"]
    return Cost(len(flops), sum(flops.values()), round(before + sum(here[name] for name in sorted(known)), 3))
