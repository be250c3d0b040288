"""The alarms of one run as a table."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stability.analysis.alarms.alarms import ALARMS, LOGIT_THRESHOLD, WATCHED
from stability.analysis.alarms.scores import steps_to
from stability.analysis.alarms.trace import trace_of
from stability.errors import InputError
from stability.tracking.record import Row, RunFolder, read_rows

SCHEMA = {
    "alarm": pl.String,
    "watches": pl.String,
    "threshold": pl.Float64,
    "first_step": pl.Int64,
    "score": pl.Float64,
    "steps_to_1e4": pl.Float64,
}


def early_warning(run: str | Path | Sequence[Row]) -> pl.DataFrame:
    """When each alarm first fires in one run. How often they are right: docs/early_warning.md.

    An alarm uses the rows up to the one at which it fires, so what it says of an unfinished run stays true.

    Args:
        run: its folder (`results/NAME/runs/RUN`), or its rows as `metrics.jsonl` has them, oldest first.

    Returns:
        One row for each alarm, those that fired first, with the columns

        - `alarm`, `watches`: its name, and the metrics that it reads;
        - `threshold`: the score beyond which it fires;
        - `first_step`: the step of the row at which it does, null when it never does;
        - `score`: at that row, and at the last row where it never fires;
        - `steps_to_1e4`: for the alarms of the attention logit, steps from there until the logit passes 1e4 as it
          grows there (0 beyond it); null without growth.

    Raises:
        InputError: the folder holds no metrics.
    """
    if isinstance(run, str | Path):
        path = RunFolder(Path(run)).metrics
        if not path.is_file():
            raise InputError("run", run, "holds no metrics.jsonl", "Name a run's folder, results/NAME/runs/RUN.")
        run = read_rows(path)
    trace = trace_of(run, WATCHED)
    ahead = steps_to(trace, LOGIT_THRESHOLD)
    found = []
    for alarm in ALARMS.values():
        first = alarm.first(trace)
        at = len(trace.steps) - 1 if first is None else first
        found.append(
            {
                "alarm": alarm.name,
                "watches": alarm.watches,
                "threshold": alarm.threshold,
                "first_step": None if first is None else int(trace.steps[first]),
                "score": float(alarm.score(trace)[at]) if at >= 0 else None,
                "steps_to_1e4": float(ahead[at]) if at >= 0 and alarm.watches == "attention_logit/max" else None,
            }
        )
    table = pl.DataFrame(found, schema=SCHEMA).with_columns(pl.col("score", "steps_to_1e4").fill_nan(None))
    return table.sort("first_step", nulls_last=True, maintain_order=True)
