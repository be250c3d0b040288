"""The results as text for a terminal: sizes and arms in one table, claims in another."""

from collections.abc import Mapping, Sequence
from typing import Any

from stability.analysis.source import size_name
from stability.tracking.record import TERMINAL
from stability.untrusted.printable import printable

_MISSING = "-"
_HEADER = ("scale", "params", "arm", "sensitivity (mean)", "best LR", "highest stable LR", "max attention logit")
_CLAIMS_HEADER = ("claim", "verdict", "effect", "90 % interval", "n")
_FORECAST_HEADER = ("N", "LR", "forecast", "90 % interval", "P", "remark")
_RIGHT_ALIGNED = ("params", "best LR", "max attention logit", "effect", "n", "N", "LR", "forecast", "P")


def format_table(summary: Mapping[str, Any]) -> str:
    """The results as an aligned text table: a line for each scale and arm, smallest scale first.

    Args:
        summary: as `analyze` returns it.
    """
    lines = result_lines(summary)
    needless = set()
    if len({line["arm"] for line in lines}) < 2:
        needless.add("arm")
    if all(line["scale"] == line["params"] for line in lines):
        needless.add("params")
    header = [name for name in _HEADER if name not in needless]
    previous: tuple[str, str] | None = None
    for line in lines:
        size = (line["scale"], line["params"])
        if size == previous and "arm" in header:  # say a scale once, so that its arms read as a group
            line["scale"] = line["params"] = ""
        previous = size
    return _aligned(header, [[line[name] for name in header] for line in lines])


def result_lines(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The results of every scale and arm in words, by the name of the column; smallest scale first.

    Args:
        summary: as `analyze` returns it.
    """
    return [_table_line(summary, edge) for edge in sorted(summary["max_stable_learning_rate"], key=_by_size)]


def format_claims(summary: Mapping[str, Any]) -> str:
    """The claims as an aligned text table, a line each; empty where there are none.

    Args:
        summary: as `analyze` returns it.
    """
    lines = [
        (
            claim["name"],
            claim["verdict"],
            _MISSING if claim["effect"] is None else f"{claim['effect']:.3g}",
            interval_text(claim["interval"]) or _MISSING,
            str(claim["n"]),
        )
        for claim in summary["claims"]
    ]
    return _aligned(_CLAIMS_HEADER, lines) if lines else ""


def format_forecasts(summary: Mapping[str, Any]) -> str:
    """The forecasts of quantities, each after its back-test; empty where there are none.

    Args:
        summary: as `analyze` returns it.
    """
    return "\n\n".join(_forecast_text(one) for one in summary["quantity_forecasts"])


def _forecast_text(one: Mapping[str, Any]) -> str:
    lines = [f"Forecast {one['name']}: {one['quantity']}, {forecast_threshold_text(one)} ({one['arm']})"]
    lines += [f"  {text}" for text in back_test_lines(one)]
    if one["reason"]:
        return "\n".join([*lines, f"  No forecast: {one['reason']}."])
    for row in one["highest_stable"]:
        lines.append(f"  {size_name(row['n_params'])}: {highest_stable_text(row)}")
    rows = [
        (
            size_name(row["n_params"]),
            f"{row['learning_rate']:g}",
            _MISSING if row["value"] is None else compact(row["value"]),
            interval_text(row["interval"]) or _MISSING,
            _MISSING if row["probability"] is None else f"{row['probability']:.2f}",
            row["reason"] or "",
        )
        for row in one["predictions"]
    ]
    return "\n".join([*lines, *(f"  {line}" for line in _aligned(_FORECAST_HEADER, rows).splitlines())])


def forecast_threshold_text(one: Mapping[str, Any]) -> str:
    """The threshold of a forecast in words.

    Args:
        one: an entry of `quantity_forecasts`.
    """
    if one["threshold"] is None:
        return "no threshold: the runs' verdicts do not tell one"
    side = f"danger {one['direction']} {one['threshold']:.3g}"
    if not one["threshold_estimated"]:
        return side
    return f"{side}, estimated from the runs {interval_text(one['threshold_interval'])}"


def back_test_lines(one: Mapping[str, Any]) -> list[str]:
    """The back-tests of a forecast in words, a line for each rival: log score, gain over persistence, coverage.

    Args:
        one: an entry of `quantity_forecasts`.
    """
    return [
        f"back-test {row['model']}: log score {row['log_score']:.2f}"
        + ("" if row["gain"] is None else f" ({row['gain']:+.2f} against persistence)")
        + f", 90 % intervals held {row['coverage']:.0%} of {row['n_runs']} runs"
        for row in one["back_test"]
        if row["held_out"] is None
    ]


def highest_stable_text(row: Mapping[str, Any]) -> str:
    """An entry of `highest_stable` in words."""
    if row["value"] is None:
        return f"highest stable LR: {row['reason']}"
    ends = ["outside the grid" if end is None else f"{end:.3g}" for end in row["interval"]]
    safe = "no LR of the grid" if row["safe"] is None else f"up to {row['safe']:.3g}"
    return (
        f"highest stable LR {row['value']:.3g}, 90 % interval {ends[0]} to {ends[1]}; "
        f"safe with probability {row['safe_probability']:g}: {safe}"
    )


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval in words, empty where there is none."""
    return "" if interval is None else f"[{interval[0]:.3g}, {interval[1]:.3g}]"


def _by_size(edge: Mapping[str, Any]) -> tuple[int, str, str]:
    return edge["n_params"], edge["scale"], edge["arm"]


def _table_line(summary: Mapping[str, Any], edge: Mapping[str, Any]) -> dict[str, str]:
    def same_cell(row: Mapping[str, Any]) -> bool:
        return all(row[key] == edge[key] for key in ("arm", "scale", "n_params"))

    means = [row for row in summary["sensitivity"] if same_cell(row) and row["estimator"] == "mean"]
    best = [row for row in summary["best_learning_rate"] if same_cell(row) and row["value"] is not None]
    logits = [
        run["attention_logit_max"]
        for run in summary["runs"]
        if same_cell(run) and run["status"] in TERMINAL and run["attention_logit_max"] is not None
    ]
    return {
        "scale": edge["scale"],
        "params": size_name(edge["n_params"]),
        "arm": edge["arm"],
        "sensitivity (mean)": _sensitivity_text(means[0]) if means else _MISSING,
        "best LR": _best_text(best[0]) if best else _MISSING,
        "highest stable LR": edge_text(edge["lower"], edge["upper"]),
        "max attention logit": compact(max(logits)) if logits else _MISSING,
    }


def _sensitivity_text(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return _MISSING
    interval = "" if row["interval"] is None else f" [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]"
    return f"{row['value']:.3f}{interval}"


def _best_text(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.2g}{' (end of grid)' if row['at_edge'] else ''}"


def edge_text(lower: float | None, upper: float | None) -> str:
    """A stable edge in words: the highest stable LR, and the next one of the grid, which is not."""
    if upper is None:
        return _MISSING if lower is None else f"≥ {lower:g}"
    return f"none (unstable from {upper:g})" if lower is None else f"{lower:g} (unstable from {upper:g})"


def compact(value: float) -> str:
    """A number in three digits: 23.4, 1050, 2.1e+06."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e4 else f"{value:.3g}" if abs(value) < 1e4 else f"{value:.1e}"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [[printable(cell, lines=False) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if name in _RIGHT_ALIGNED else cell.ljust(width)
            for cell, width, name in zip(cells, widths, header, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
