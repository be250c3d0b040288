"""`python -m stability.analyze source=PATH`: records, or a CSV, to sensitivities, stable edges and figures. No JAX."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from stability.command_line import report
from stability.errors import InputError

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EPILOG = """\
keys
  source=PATH               a results folder, or a CSV with the columns n_params, learning_rate, loss
                            and, if you have them, arm, seed, loss_initial
  output_dir=DIR            where summary.json and analysis/ go; by default the results folder itself,
                            or analysis/NAME for NAME.csv
  unstable_excess=0.5       nats above the best loss from which a run counts as unstable
  learning_rate_min=X       narrows the range of learning rates that sensitivity is taken over
  learning_rate_max=X

example
  python -m stability.analyze source=results/quickstart output_dir=/tmp/again
"""


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """The keys of the command line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: str
    output_dir: str | None = None
    unstable_excess: PositiveFloat = 0.5
    learning_rate_min: PositiveFloat | None = None
    learning_rate_max: PositiveFloat | None = None


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m stability.analyze",
        description="Measure learning-rate sensitivity and stable edges from records or any table of runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE")
    try:
        return _analyze(_settings(parser.parse_args(arguments).settings))
    except InputError as error:
        return report(error)


def _settings(words: list[str]) -> AnalysisSettings:
    from stability.typed import from_mapping

    for word in words:
        if "=" not in word:
            raise InputError("argument", word, "is not KEY=VALUE", f"Did you mean source={word}?")
    given = dict(word.split("=", 1) for word in words)
    if "source" not in given:
        raise InputError("source", "", "is missing", "Say what to analyse: source=results/NAME or source=FILE.csv.")
    return from_mapping(AnalysisSettings, given)


def _analyze(settings: AnalysisSettings) -> int:
    from stability.analysis import analyze, format_table

    source = Path(settings.source).expanduser()
    default = source if source.is_dir() else Path("analysis") / source.stem
    output = Path(settings.output_dir).expanduser() if settings.output_dir else default
    summary = analyze(
        source,
        output,
        unstable_excess=settings.unstable_excess,
        learning_rate_min=settings.learning_rate_min,
        learning_rate_max=settings.learning_rate_max,
    )
    print(format_table(summary))
    print(f"\nResults: {output}   (summary.json, analysis/)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
