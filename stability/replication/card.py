"""The card as data: what the paper states, what our records say of it, and what that has cost.

The JSON file is a contract: docs/records.md defines every field. A card may hold several ladders; what a command
finds replaces its own ladder's part and leaves the others' as they are.
"""

import re
from collections.abc import Mapping, Sequence
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
from stability.replication.study import Study, cost_of
from stability.tracking.files import read_json, write_json
from stability.tracking.record import FIGURES

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
    findings: Mapping[str, Mapping[str, Any]],
    command: str,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The card with one ladder's part made anew.

    Args:
        old: the card so far.
        ladder: whose part.
        studies: all experiments, in the paper's order.
        findings: sweep -> what `finding` gave, of those that have been analysed.
        command: what makes this part.
        seeds: that were asked for.
    """
    before = {sweep["name"]: sweep for sweep in old["sweeps"]}
    sweeps = [_sweep(before.get(study.name, {}), ladder, study, findings.get(study.name)) for study in studies]
    part = {
        "command": command,
        "seeds": list(seeds),
        "complete": all(sweep["ladders"][ladder]["status"] == "complete" for sweep in sweeps),
        "missing": [sweep["name"] for sweep in sweeps if sweep["ladders"][ladder]["status"] != "complete"],
        "cost": asdict(cost_of(studies)),
        "made_with": _joined(finding["made_with"] for finding in findings.values()),
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


def finding(study: Study, folder: Path, base: Path) -> dict[str, Any]:
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

    rows = {row["name"]: row for row in summary["claims"]}
    keys = ("verdict", "effect", "interval", "n", "measured", "evidence")
    return {
        "summary": (folder / "summary.json").relative_to(base).as_posix(),
        "figure": path_of("loss_by_learning_rate"),
        "claims": {name: {key: rows[name][key] for key in keys} | {"figure": path_of(wanted[name])} for name in claims},
        "made_with": {key: values for key, values in found.about.made_with.items() if key in MADE_WITH},
    }


def _sweep(old: Mapping[str, Any], ladder: str, study: Study, found: Mapping[str, Any] | None) -> dict[str, Any]:
    definition = study.request.definition
    results = study.results()
    done, planned = len(results), len(study.runs)
    seeds = {(run.config.seed, run.config.data.seed) for run in study.runs if run.fingerprint in results}
    status = "missing" if found is None else "complete" if done == planned else "partial"
    part = {
        "status": status,
        "runs_planned": planned,
        "cost": asdict(cost_of([study])),
        "seeds": len(seeds),
        "command": study.command,
        "summary": found["summary"] if found else None,
        "figure": found["figure"] if found else None,
    }
    claims = {claim["name"]: claim for claim in old.get("claims", [])}
    return {
        "name": study.name,
        "question": definition.question,
        "source": definition.source,
        "paper_figures": _figures_named(definition.source),
        "ladders": {**old.get("ladders", {}), ladder: part},
        "claims": [
            {
                "name": name,
                "kind": content["kind"],
                "paper": content.get("paper", ""),
                "ladders": {
                    **{key: value for key, value in claims.get(name, {}).get("ladders", {}).items() if key != ladder},
                    **({ladder: found["claims"][name]} if found else {}),
                },
            }
            for name, content in definition.claims.items()
        ],
    }


def _figures_named(source: str) -> list[str]:
    """The figures that a source names: "Figures 8, E.4 and E.5" are three."""
    words = re.search(r"Figures? (.*)$", source)
    return re.findall(r"(?:[A-Z]\.)?\d+", words[1]) if words else []


def _joined(parts: Any) -> dict[str, list[str]]:
    """Key -> every value that it has anywhere, sorted."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for key, values in part.items():
            found.setdefault(key, set()).update(values)
    return {key: sorted(values) for key, values in sorted(found.items())}
