"""A CSV or Parquet table of runs, of one row a run or one row a step, as one row a run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from stability.analysis.quantities import Quantity, expression
from stability.analysis.source import COLUMNS, RUN_INDEX, History, history_schema, no_history
from stability.analysis.table_columns import PLACE, RUN, propose, roles_of
from stability.analysis.table_parts import TableFile
from stability.analysis.table_rows import STATUSES, Rows
from stability.errors import InputError
from stability.tracking.record import TERMINAL


@dataclass(frozen=True)
class TableRuns:
    """The runs of one table file.

    Attributes:
        file: where they are from.
        runs: one row a run: the columns of `SEAT` (scale null where the file has none), `PLACE` (its first row),
            status, steps, the losses, the two attention_logit_max, and one Float64 column for each quantity.
        quantities: the quantities among the columns of `runs`.
        metrics: what a quantity can be made of here.
        warnings: what a reader ought to know.
        history: the runs step by step, where a row of the file is a step; its `RUN_INDEX` counts the rows of `runs`.
    """

    file: TableFile
    runs: pl.DataFrame
    quantities: tuple[str, ...]
    metrics: frozenset[str]
    warnings: tuple[str, ...]
    history: History


def read_table(file: TableFile, aliases: Mapping[str, str], quantities: Mapping[str, Quantity]) -> TableRuns:
    """Read a table file.

    Args:
        file: opened.
        aliases: contract name -> the file's column, checked.
        quantities: what to make of the columns, by name. One whose metric the file does not have is read from a column
            of its own name, if there is one. Every other numeric column is a quantity of its own name: the last value
            in the run.

    Raises:
        InputError: a required column is missing, or a cell, a row, or the rows of a run make no sense.
    """
    rows = Rows(file, roles_of(file, aliases))
    for part in file.parts():
        rows.add(part)
    frame = _in_order(rows)
    facts = _facts(frame, rows)
    results = _results(facts, rows).hstack(_logits(frame, rows))
    read, warnings = _quantities(frame, rows, quantities)
    seats = rows.seats()
    caveats = _caveats(pl.concat([facts, seats, results.select(outcome="status")], how="horizontal"), rows)
    return TableRuns(
        file,
        pl.concat([seats, results, read], how="horizontal"),
        tuple(read.columns),
        frozenset(rows.metrics),
        (*rows.warnings(), *warnings, *caveats),
        (lambda metrics, count: _history(frame, rows, metrics, count)) if rows.has_steps else no_history,
    )


def _history(frame: pl.DataFrame, rows: Rows, metrics: Sequence[str], count: int) -> pl.DataFrame:
    known = {metric: column for metric in metrics if (column := rows.metrics.get(metric))}
    if not known:
        return no_history(metrics, count)
    steps = frame.select(
        pl.col(RUN).alias(RUN_INDEX), "step", **{name: pl.col(column) for name, column in known.items()}
    )
    steps = steps.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in known))
    # A row is kept where its share of the run's rows enters another of `count - 1` equal parts; so the last one is.
    place, height = pl.int_range(pl.len()).over(RUN_INDEX), pl.len().over(RUN_INDEX)
    part = (place * (count - 1)) // (height - 1).clip(1)
    kept = steps.filter((part != part.shift(1).over(RUN_INDEX)).fill_null(True))
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in known]
    missing = [pl.lit(None, pl.Float64).alias(name) for name in metrics if name not in known]
    return kept.with_columns(*finite, *missing).select(
        pl.col(name).cast(dtype) for name, dtype in history_schema(metrics).items()
    )


def _in_order(rows: Rows) -> pl.DataFrame:
    """The rows run by run, those of a run ascending in step; one run, or one step of it, twice is refused."""
    if not rows.frames:
        raise InputError("source", rows.file.path, "has a header but no runs", "Add one line for each run.")
    keys = [RUN, "step"] if rows.has_steps else [RUN]
    frame = rows.frame()
    later = frame[RUN].diff() > 0
    if rows.has_steps:
        later |= (frame[RUN].diff() == 0) & (frame["step"].diff() > 0)
    if not later.slice(1).all():
        frame = frame.sort(keys, maintain_order=True)
        _refuse_twins(frame, keys, rows)
    return frame.with_columns(pl.col(RUN).set_sorted())


def _refuse_twins(frame: pl.DataFrame, keys: list[str], rows: Rows) -> None:
    twins = frame.filter(frame.select(keys).is_duplicated()).sort(PLACE)
    if twins.is_empty():
        return
    same = twins.filter(pl.struct(keys) == pl.struct(keys).first())
    unit, path, (first, second) = rows.file.unit, rows.file.path, same[PLACE].head(2)
    if rows.has_steps:
        problem = f"has step {same['step'][0]} of one run on {unit}s {first} and {second} ({rows.seat(same[RUN][0])})"
        raise InputError("source", path, problem, "Delete one of them, or tell the runs apart by `arm` or `seed`.")
    fix = "Delete one of them, or tell them apart by `arm`, `scale` or `seed`."
    if any("step" in name.lower() for name in rows.others):
        fix += f" If a row is one step of a run, say so: {propose('step', rows.others)}."
    problem = f"has the same arm, n_params, learning_rate and seed on {unit}s {first} and {second}"
    raise InputError("source", path, problem, fix)


# --- what a run's rows say of it --------------------------------------------------------------------------------------

_CONSTANT = ("status", "loss_initial", "steps")


def _facts(frame: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    """One row a run, in the order of `RUN`: what its rows hold, before anything is concluded from it."""
    loss = pl.col("loss")
    broken = loss.is_not_null() & ~loss.is_finite()
    facts = [
        pl.col(PLACE).first(),
        loss.last(),
        pl.col(PLACE).last().alias("place_last"),
        pl.col(PLACE).filter(broken).first().alias("place_broken"),
        loss.is_null().sum().alias("unmeasured"),
    ]
    if "loss_initial" in frame.columns:  # not finite is not known
        frame = frame.with_columns(pl.when(pl.col("loss_initial").is_finite()).then(pl.col("loss_initial")))
    for name in _CONSTANT:
        known = pl.col(name).drop_nulls()
        if name in frame.columns:
            facts += [known.first().alias(name), (known != known.first()).any().alias(f"{name}_differs")]
        else:
            dtype = STATUSES if name == "status" else COLUMNS[name]
            facts += [pl.lit(None, dtype).alias(name), pl.lit(False).alias(f"{name}_differs")]
    if rows.has_steps:
        facts += [pl.col("step").last(), loss.filter(pl.col("step") == 0).first().alias("loss_first")]
    else:
        facts += [pl.lit(None, pl.Int64).alias("step"), pl.lit(None, pl.Float64).alias("loss_first")]
    found = frame.group_by(RUN, maintain_order=True).agg(facts)
    for name in _CONSTANT:
        for run in found.filter(f"{name}_differs")[RUN].head(1):
            _refuse_conflict(frame, rows, name, run)
    return found.drop(RUN)


def _refuse_conflict(frame: pl.DataFrame, rows: Rows, name: str, run: int) -> None:
    known = frame.filter((pl.col(RUN) == run) & pl.col(name).is_not_null()).select(PLACE, name)
    first = known.row(0)
    other = known.filter(pl.col(name) != first[1]).row(0)
    raise InputError(
        name,
        f"{first[1]!r} and {other[1]!r}",
        f"are two values of one run, on {rows.file.unit}s {first[0]} and {other[0]} of {rows.file.path} "
        f"({rows.seat(run)})",
        f"Give every row of a run the same {name}, or tell the runs apart by `arm` or `seed`.",
    )


def _results(facts: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    """What is concluded of every run: its status, steps and losses.

    A run is diverged when its loss was not finite at any step, or ends above the loss at
    initialisation. One that is said to have diverged, has, whatever its loss; one that is said to have failed or to be
    running has no result.
    """
    contradicted = facts.filter(
        (pl.col("status") == "finished") & (pl.col("place_broken").is_not_null() | pl.col("loss").is_null())
    )
    for row in contradicted.head(1).iter_rows(named=True):
        raise InputError(
            "status",
            "finished",
            "is the status of a run whose loss is not finite "
            f"({rows.file.unit} {row['place_broken'] or row['place_last']} of {rows.file.path})",
            "Write diverged, or mend the loss.",
        )
    finite = pl.when(pl.col("loss").is_finite()).then(pl.col("loss"))
    first = pl.when(pl.col("loss_first").is_finite()).then(pl.col("loss_first"))
    initial = pl.coalesce("loss_initial", first)
    diverged = pl.col("place_broken").is_not_null() | pl.col("loss").is_null() | (finite > initial).fill_null(False)
    derived = pl.when(diverged).then(pl.lit("diverged")).otherwise(pl.lit("finished"))
    given = pl.when(pl.col("status") != "finished").then(pl.col("status").cast(pl.String))
    results = facts.select(
        PLACE,
        pl.coalesce(given, derived).alias("status"),
        pl.coalesce("steps", "step").alias("steps"),
        initial.alias("loss_initial"),
        finite.alias("loss_validation"),
    )
    ended = pl.col("status").is_in(list(TERMINAL))
    return results.with_columns(pl.when(ended).then("loss_validation"))


def _logits(frame: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    """The largest attention logit of the training, and the last one observed."""
    over_run, final = "attention_logit_max", "attention_logit_max_final"
    read = {}
    if over_run in rows.roles:
        read[over_run] = expression(Quantity(over_run, reduce="max"), over_run, None, None)
    if final in rows.roles or (rows.has_steps and over_run in rows.roles):
        column = final if final in rows.roles else over_run
        read[final] = expression(Quantity(column), column, None, None)
    return _per_run(frame, read)


def _per_run(frame: pl.DataFrame, aggregations: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """Aggregations over the rows of every run, in the order of `RUN`."""
    named = [aggregation.alias(name) for name, aggregation in aggregations.items()]
    return frame.group_by(RUN, maintain_order=True).agg(named).drop(RUN)


def _quantities(frame: pl.DataFrame, rows: Rows, quantities: Mapping[str, Quantity]) -> tuple[pl.DataFrame, list[str]]:
    """Every quantity that the file has something for, one row a run, and warnings of those it cannot give."""
    metrics, read, warnings = rows.metrics, {}, []
    step = "step" if rows.has_steps else None
    steps = pl.col("step").max() if rows.has_steps else None
    if steps is not None and "steps" in rows.roles:
        steps = pl.coalesce(pl.col("steps").max(), steps)
    defaults = {name: Quantity(name) for name in rows.others if name not in quantities}
    for name, quantity in {**quantities, **defaults}.items():
        column = metrics.get(quantity.metric)
        if column is None and name in rows.others:
            quantity, column = Quantity(name), name
        if column is None:
            continue
        if quantity.needs_steps and not rows.has_steps:
            missing = f"{rows.file.path.name} has no column `step` to read the quantity {name} by; it is null there."
            warnings.append(missing)
            continue
        read[name] = expression(quantity, column, step, steps)
    return _per_run(frame, read), warnings


# --- what a reader ought to know --------------------------------------------------------------------------------------


def _caveats(facts: pl.DataFrame, rows: Rows) -> Iterator[str]:
    name, unit = rows.file.path.name, rows.file.unit
    pending = facts.filter(~pl.col("outcome").is_in(list(TERMINAL)))
    if pending.height:
        states = ", ".join(f"{state}: {count}" for state, count in sorted(Counter(pending["outcome"]).items()))
        yield f"{pending.height} of {facts.height} runs of {name} have no result and are not counted ({states})."
    if rows.has_steps:
        yield from _caveats_of_steps(facts, name, unit)


def _caveats_of_steps(facts: pl.DataFrame, name: str, unit: str) -> Iterator[str]:
    derived = facts.filter(pl.col("status").is_null() | (pl.col("status") == "finished"))
    silent = derived.filter(pl.col("loss").is_null() & pl.col("place_broken").is_null())
    if silent.height:
        yield (
            f"{silent.height} of {facts.height} runs of {name} have no loss at their last step and count as diverged "
            f"(the first ends on {unit} {silent['place_last'].sort()[0]})."
        )
    unmeasured = derived.filter(pl.col("loss").is_not_null())["unmeasured"].sum()
    if unmeasured:
        yield (
            f"{unmeasured} rows of {name} have an empty loss before their run's last step, which was taken as not "
            "measured. Write nan where a loss was not finite."
        )
    longest = derived.with_columns(pl.col("step").max().over("arm", "n_params", "scale").alias("longest"))
    short = longest.filter(
        pl.col("status").is_null() & (pl.col("outcome") == "finished") & (pl.col("step") < pl.col("longest"))
    )
    if short.height:
        row = short.row(0, named=True)
        yield (
            f"{short.height} of {facts.height} runs of {name} end earlier than others of their arm and size and count "
            f"as finished (one at step {row['step']}, {unit} {row['place_last']}; another at {row['longest']}). "
            "Say in a column `status` which of them failed."
        )
