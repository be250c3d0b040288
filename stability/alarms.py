"""`python -m stability.alarms source=DIR`: how often early-warning alarms are right on finished sweeps. No JAX."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import ConfigDict

from stability.command_line import Parser, key_values, report, unreadable
from stability.errors import InputError
from stability.untrusted.printable import tell

EPILOG = """\
keys
  source=DIR[,DIR...]   results folders, or folders of such
  choose=NAME,...       sweeps on which the thresholds are chosen; the rates are measured on the others, without the
                        runs that both have (every second sweep by name, the first included)
  output=FILE.json      the rates as data (printed only, unless given)

example
  python -m stability.alarms source=results output=rates.json
"""


@dataclass(frozen=True, kw_only=True)
class AlarmSettings:
    """The keys of the command line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: tuple[str, ...]
    choose: tuple[str, ...] = ()
    output: Annotated[str, MinLen(1)] | None = None


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = Parser(
        "alarms", "Measure false-alarm rates, miss rates and lead times of the early-warning alarms.", EPILOG
    )
    try:
        return _evaluate(_settings(key_values(parser, arguments, first="source")))
    except InputError as error:
        return report(error)
    except OSError as error:
        return report(unreadable(error))


def _settings(given: dict[str, str]) -> AlarmSettings:
    from stability.typed import from_mapping, refuse_unknown

    refuse_unknown(AlarmSettings, given)
    if not given.get("source", "").strip(","):
        raise InputError("source", "", "is missing", "Say where the results are: source=results.")
    lists = ("source", "choose")
    return from_mapping(
        AlarmSettings,
        {key: [*filter(None, text.split(","))] if key in lists else text for key, text in given.items()},
    )


def _evaluate(settings: AlarmSettings) -> int:
    from stability.analysis.alarms.evaluation import evaluate, examples
    from stability.tracking.files import write_json
    from stability.tracking.record import MANIFEST

    folders: dict[str, Path] = {}
    for source in settings.source:
        path = Path(source).expanduser()
        inside = [path] if (path / MANIFEST).is_file() else [one.parent for one in sorted(path.glob(f"*/{MANIFEST}"))]
        if not inside:
            raise InputError("source", source, "holds no sweep's results", "Name a results folder, or one above such.")
        folders |= {one.name: one for one in inside}
    output = Path(settings.output).expanduser() if settings.output else None
    if output and (output.is_dir() or not output.absolute().parent.is_dir()):
        problem = "is a folder" if output.is_dir() else "is in no folder that exists"
        raise InputError("output", output, problem, "Name a file in a folder that exists.")
    names = sorted(folders)
    chosen = settings.choose or names[::2]
    for name in chosen:
        if name not in folders:
            raise InputError("choose", name, "is no sweep among the sources", f"Choose from: {', '.join(names)}.")
    found = evaluate({name: examples(folders[name]) for name in names}, chosen)
    for outcome, part in found["outcomes"].items():
        measured = part["measured_on"]
        print(
            f"{outcome}: {measured['bad']} of {measured['cases']} cases, others than chosen on (by {part['split_by']})"
        )
        print(table(part["alarms"]))
    if output:
        try:
            write_json(output, found)
        except OSError as error:
            raise InputError("output", output, f"cannot be written ({error.strerror})", "Name another.") from None
        tell(f"Rates: {output}")
    return 0


def table(alarms: list[Mapping[str, Any]]) -> str:
    """The measured rates as lines of text."""
    lines = [f"  {'alarm':<24}{'threshold':>10}{'missed':>22}{'false alarms':>22}{'lead, steps':>14}"]
    for alarm in alarms:
        rates = alarm["measured"]
        if rates is None:
            lines.append(f"  {alarm['alarm']:<24}{'-':>10}")
            continue
        lead = "-" if rates["lead_steps"] is None else f"{rates['lead_steps'][1]:.0f}"
        note = "" if rates["better_than_chance"] else "  no better than chance"
        parts = "".join(f"{_share(rates[key]):>22}" for key in ("miss", "false_alarm"))
        lines.append(f"  {alarm['alarm']:<24}{alarm['threshold']:>10.3g}{parts}{lead:>14}{note}")
    return "\n".join(lines)


def _share(part: Mapping[str, Any]) -> str:
    if part["rate"] is None:
        return "-"
    low, high = part["interval"]
    return f"{part['rate']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
