"""The card as data: what the paper states, what our records say of it, and what that has cost.

The JSON file is a contract: docs/records.md defines every field. A card may hold several ladders; what a command
finds replaces its own ladder's part, sweep by sweep, and leaves the others' as they are.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stability.analysis import INTERVAL_LEVEL, analyze, figures
from stability.analysis.claims import parse_claims
from stability.analysis.load import read
from stability.analysis.source import COLUMNS
from stability.errors import InputError
from stability.formats import Format
from stability.replication import PAPER
from stability.replication.figures import draw, figure_of
from stability.replication.parts import Part, tests_of
from stability.replication.study import Cost, Study, cost_of
from stability.tracking.files import read_json, write_json
from stability.tracking.record import FIGURES, TERMINAL

CARD_VERSION = 1
FORMATS: tuple[Format, ...] = ("svg",)
MADE_WITH = ("device", "backend", "lanes", "versions.python", "versions.jax", "versions.stability")


def read_card(path: Path) -> dict[str, Any]:
    """The card that stands there, an empty one where none does.

    Raises:
        InputError: the file is no card of this version.
    """
    if not path.exists():
        return {"ladders": {}, "sweeps": []}
    content = read_json(path)
    if content.get("kind") != "replication" or content.get("card_version") != CARD_VERSION:
        raise InputError("output", path, "is no replication card of this version", "Name another file.")
    return content


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Replace the card in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, card)


def replaced(
    old: Mapping[str, Any],
    ladder: str,
    studies: Sequence[Study],
    parts: Mapping[str, Part],
    cost: Cost,
    command: str,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The card with one ladder's part made anew.

    Args:
        old: the card so far.
        ladder: whose part.
        studies: all experiments, in the paper's order.
        parts: sweep -> what `finding` gave, or what is kept of the card so far; of those that have either.
        cost: of all runs behind it.
        command: what makes this part.
        seeds: that were asked for.
    """
    before = {sweep["name"]: sweep for sweep in old["sweeps"]}
    sweeps = [_sweep(before.get(study.name, {}), ladder, study, parts.get(study.name)) for study in studies]
    part = {
        "command": command,
        "seeds": list(seeds),
        "complete": all(sweep["ladders"][ladder]["status"] == "complete" for sweep in sweeps),
        "missing": [sweep["name"] for sweep in sweeps if sweep["ladders"][ladder]["status"] != "complete"],
        "cost": asdict(cost),
        "made_with": _joined(part.made_with for part in parts.values()),
    }
    return {
        "schema_version": 1,
        "kind": "replication",
        "card_version": CARD_VERSION,
        "paper": PAPER,
        "interval_level": INTERVAL_LEVEL,
        "ladders": {**old["ladders"], ladder: part},
        "sweeps": [*sweeps, *(sweep for name, sweep in before.items() if name not in {s.name for s in studies})],
    }


def finding(study: Study, folder: Path, base: Path) -> Part:
    """Analyse what an experiment has: its verdicts, and beside the card its summary.json and the claims' figures.

    The results folder is only read.

    Args:
        study: with at least one result.
        folder: where summary and figures go; made if it does not exist.
        base: the card's folder, which all paths are relative to.
    """
    definition = study.request.definition
    claims = parse_claims(definition.claims)
    summary = analyze(
        study.folder,
        folder,
        quantities=definition.quantities,
        claims=definition.claims,
        forecasts=definition.forecasts,
        figure_formats=(),
        report=False,
    )
    found = read(study.folder, quantities=definition.quantities)
    quantities = found.table.columns[len(COLUMNS) :]
    wanted = {name: figure_of(claim, quantities) for name, claim in claims.items()}
    drawn = draw(found, summary, {*wanted.values(), "loss_by_learning_rate"})
    specs = {name: figures.specification(chart) for name, chart in drawn.items()}
    figures.save_all(specs, folder / FIGURES, FORMATS)

    def path_of(name: str) -> str | None:
        return (folder / FIGURES / f"{name}.svg").relative_to(base).as_posix() if name in specs else None

    # Another command may have finished runs since: what is counted is what the verdicts rest on.
    counted = {run["fingerprint"] for run in summary["runs"] if run["status"] in TERMINAL}
    seconds = {name: float(one.get("seconds") or 0.0) for name, one in study.results().items() if name in counted}
    rows = {row["name"]: row for row in summary["claims"]}
    keys = ("verdict", "effect", "interval", "n", "measured", "evidence")
    return Part(
        runs=frozenset(seconds),
        cost=cost_of(study, seconds),
        summary=(folder / "summary.json").relative_to(base).as_posix(),
        figure=path_of("loss_by_learning_rate"),
        made_with={key: values for key, values in found.about.made_with.items() if key in MADE_WITH},
        claims={name: {key: rows[name][key] for key in keys} | {"figure": path_of(wanted[name])} for name in claims},
        seconds=seconds,
    )


def _sweep(old: Mapping[str, Any], ladder: str, study: Study, found: Part | None) -> dict[str, Any]:
    definition = study.request.definition
    claims = {claim["name"]: claim for claim in old.get("claims", [])}
    return {
        "name": study.name,
        "question": definition.question,
        "source": definition.source,
        "paper_figures": _figures_named(definition.source),
        "ladders": {**old.get("ladders", {}), ladder: _of_ladder(study, found)},
        "claims": [
            {
                "name": name,
                "kind": content["kind"],
                "paper": content.get("paper", ""),
                "ladders": {
                    **{key: value for key, value in claims.get(name, {}).get("ladders", {}).items() if key != ladder},
                    **({ladder: found.claims[name]} if found else {}),
                },
            }
            for name, content in definition.claims.items()
        ],
    }


def _of_ladder(study: Study, found: Part | None) -> dict[str, Any]:
    runs = found.runs if found else frozenset()
    seeds = {(run.config.seed, run.config.data.seed) for run in study.runs if run.fingerprint in runs}
    status = "missing" if found is None else "complete" if len(runs) == len(study.runs) else "partial"
    return {
        "status": status,
        "runs_planned": len(study.runs),
        "cost": asdict(found.cost if found else Cost(0, 0.0, 0.0)),
        "seeds": len(seeds),
        "command": study.command,
        "summary": found.summary if found else None,
        "figure": found.figure if found else None,
        "made_with": _joined([found.made_with] if found else []),
        "tests": tests_of(study.request.definition),
    }


def _figures_named(source: str) -> list[str]:
    """The figures that a source names: "Figures 8, E.4 and E.5" are three."""
    words = re.search(r"Figures? (.*)$", source)
    return re.findall(r"(?:[A-Z]\.)?\d+", words[1]) if words else []


def _joined(parts: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Key -> every value that it has anywhere, sorted."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for key, values in part.items():
            found.setdefault(key, set()).update(values)
    return {key: sorted(values) for key, values in sorted(found.items())}
