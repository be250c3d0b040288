"""`python -m stability.analyze source=PATH`: records, or a CSV, to sensitivities, stable edges and figures. No JAX."""

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import ConfigDict, Field

from stability.command_line import Parser, key_values, report, unreadable
from stability.errors import InputError
from stability.formats import FORMATS, Format
from stability.untrusted.names import folder_name
from stability.untrusted.printable import tell

Text = Annotated[str, MinLen(1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EPILOG = """\
keys
  source=PATH[,PATH...]     results folders, wandb:ENTITY/PROJECT?group=SWEEP (docs/wandb.md), or CSV or Parquet
                            tables with the columns n_params, learning_rate, loss and, if you have them, arm, seed,
                            loss_initial, status, step, attention_logit_max; every other numeric column is a quantity
  column.NAME=COLUMN        what a table calls the column NAME: column.loss=test_loss column.arm=variant,width
  claims=FILE.yaml          claims to test, and quantities to read (docs/statistics.md)
  forecasts=FILE.yaml       quantities to forecast over N and LR (docs/forecasting.md); the file of claims may hold
                            them too
  output_dir=DIR            where summary.json and analysis/ go; by default the results folder itself,
                            or analysis/NAME for NAME.csv and for a sweep on W&B
  forecast_n_params=N,...   sizes at which to forecast the highest stable learning rate, and quantities
  unstable_excess=0.5       nats above the best loss from which a run counts as unstable
  loss_noise=0.03           how much a run's final loss varies from seed to seed (standard deviation, nats),
                            for where there is one seed
  learning_rate_min=X       narrows the range of learning rates that sensitivity is taken over
  learning_rate_max=X
  figures=svg,pdf,png       formats of the figures' files; empty for none
  early_warning=true        say which alarms fired in every run (docs/early_warning.md); false unless asked for
  report=true               write report.html, all results and figures on one page

examples
  python -m stability.analyze source=results/quickstart output_dir=/tmp/again
  python -m stability.analyze 'source=wandb:my-team/stability?group=quickstart'
  python -m stability.analyze source=runs.csv column.learning_rate=lr column.loss=eval_loss claims=claims.yaml
"""
COLUMN = "column."


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """The keys of the command line, but for `column.NAME`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: str
    output_dir: Text | None = None
    claims: Text | None = None
    forecasts: Text | None = None
    forecast_n_params: tuple[PositiveFloat, ...] = ()
    unstable_excess: PositiveFloat = 0.5
    loss_noise: PositiveFloat = 0.03
    learning_rate_min: PositiveFloat | None = None
    learning_rate_max: PositiveFloat | None = None
    figures: tuple[Format, ...] = FORMATS
    report: bool = True
    early_warning: bool = False


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = Parser(
        "analyze", "Measure learning-rate sensitivity and stable edges from records or any table of runs.", EPILOG
    )
    try:
        given = key_values(parser, arguments, first="source")
        aliases = {key.removeprefix(COLUMN): value for key, value in given.items() if key.startswith(COLUMN)}
        return _analyze(_settings({key: value for key, value in given.items() if not key.startswith(COLUMN)}), aliases)
    except InputError as error:
        return report(error)
    except OSError as error:
        return report(unreadable(error))


def _settings(given: dict[str, str]) -> AnalysisSettings:
    from stability.typed import from_mapping, refuse_unknown

    refuse_unknown(AnalysisSettings, given)
    if not given.get("source", "").strip(","):
        raise InputError("source", "", "is missing", "Say what to analyse: source=results/NAME or source=FILE.csv.")
    lists = ("forecast_n_params", "figures")
    values = {key: [*filter(None, text.split(","))] if key in lists else text for key, text in given.items()}
    return from_mapping(AnalysisSettings, values)


def _sources(text: str) -> list[str | Path]:
    """The paths of a list; a path that itself holds a comma is one."""
    from stability.analysis.wandb_source import is_wandb

    whole = Path(text).expanduser()
    parts = [str(whole)] if whole.exists() else [part.strip() for part in text.split(",")]
    return [part if is_wandb(part) else Path(part).expanduser() for part in parts]


def _name(source: str | Path) -> str:
    """What a source is called in the name of an output folder."""
    from stability.analysis.wandb_source import parse_address

    return folder_name(source.stem if isinstance(source, Path) else parse_address(source).group)


def _analyze(settings: AnalysisSettings, aliases: dict[str, str]) -> int:
    from stability.analysis import analyze, format_claims, format_forecasts, format_table
    from stability.analysis.definitions import Definitions, read_definitions

    sources = _sources(settings.source)
    empty = Definitions({}, {}, {})
    named = {"claims": settings.claims, "forecasts": settings.forecasts}
    files = [read_definitions(Path(path).expanduser(), key) if path else empty for key, path in named.items()]
    definitions, forecasts = files[0], files[1]
    first = sources[0]
    default = first if isinstance(first, Path) and first.is_dir() else Path("analysis") / _name(first)
    if len(sources) > 1:
        default = Path("analysis") / "+".join(_name(source) for source in sources)
    output = Path(settings.output_dir).expanduser() if settings.output_dir else default
    summary = analyze(
        sources,
        output,
        aliases=aliases,
        quantities={**definitions.quantities, **forecasts.quantities},
        claims={**definitions.claims, **forecasts.claims},
        forecasts={**definitions.forecasts, **forecasts.forecasts},
        forecast_n_params=settings.forecast_n_params,
        unstable_excess=settings.unstable_excess,
        loss_noise=settings.loss_noise,
        learning_rate_min=settings.learning_rate_min,
        learning_rate_max=settings.learning_rate_max,
        figure_formats=settings.figures,
        report=settings.report,
        early_warning=settings.early_warning,
    )
    tell(format_table(summary))
    if summary["claims"]:
        tell("\n" + format_claims(summary))
    if summary["quantity_forecasts"]:
        tell("\n" + format_forecasts(summary))
    tell(f"\nResults: {output}   ({'report.html, ' if settings.report else ''}summary.json, analysis/)")
    return 0


class _CallableModule(types.ModuleType):
    """Keeps `stability.analyze(...)` what it is in a notebook once this module, of the same name, has been imported."""

    def __call__(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        from stability.analysis import analyze

        return analyze(*arguments, **settings)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
