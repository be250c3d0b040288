"""One self-contained HTML page of an analysis. Whatever comes from a config or a table is escaped.

The page draws the same Vega-Lite charts that the figure files are made of, with vl-convert's own copy of Vega, and asks
the network for nothing: its content-security policy forbids it.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import vl_convert

from stability.analysis.figures import vega_lite_version
from stability.analysis.figures.catalogue import FORECAST
from stability.analysis.source import Source, size_name
from stability.analysis.terminal import (
    compact,
    edge_text,
    forecast_threshold_text,
    highest_stable_text,
    interval_text,
    result_lines,
)
from stability.cache import cached

_FOLDER = Path(__file__).resolve().parent

_HOW_TO_READ = {
    "loss_by_learning_rate": "A flat curve is a model that does not care for its learning rate. Where a curve turns "
    "up, larger rates cost loss; that point moves left as unstable models grow.",
    "sensitivity_by_n_params": "How far, on average over the grid of learning rates, the loss lies above the best. 0 "
    "is a model that does not care. A model that never learns is insensitive too: look at the loss beside it.",
    "stable_edge_by_n_params": "The highest learning rate whose loss stays within the declared excess of the best one.",
    "attention_logit_max_by_learning_rate": "In the paper every run whose attention logits passed 1e4 diverged; small "
    "models suffer well below.",
    "attention_logit_max_over_steps": "Growth shows within the first steps, long before the loss does.",
    "log_z_by_learning_rate": "log Z far from 0 is what z-loss prevents: the output logits drift away together.",
    "log_z_over_steps": "The same over training.",
}


_FORECAST_HOW_TO_READ = (
    "Where the band crosses the dashed line a learning rate is in danger. First look whether the diamonds, forecasts "
    "of a size that was held out, had their points inside their bars."
)


def page(
    found: Source,
    summary: Mapping[str, Any],
    specs: Mapping[str, Mapping[str, Any]],
    output: Path,
    formats: Collection[str],
) -> str:
    """The page.

    Args:
        found: the runs, and where they are from.
        summary: what summary.json holds.
        specs: figures in their order: name -> Vega-Lite.
        output: the folder that the page will lie in; links to records are relative to it.
        formats: of the figures' files under output/analysis, which the page links to.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        about=found.about,
        summary=summary,
        counts=Counter(run["status"] for run in summary["runs"]),
        choices={"arm": _in_order(summary, "arm"), "scale": _in_order(summary, "scale")},
        results=result_lines(summary),
        claims=[{**claim, "effect": _number(claim["effect"])} for claim in summary["claims"]],
        # A back-test that the data do not allow is no news.
        forecasts=[one for one in summary["forecasts"] if one["value"] is not None or not one["held_out"]],
        quantity_forecasts=[_forecast(one) for one in summary["quantity_forecasts"]],
        highest_stable=highest_stable_text,
        runs=_runs(summary, found, output),
        quantities=sorted({name for run in summary["runs"] for name in run["quantities"]}),
        figures=[{"name": name, "how_to_read": _how_to_read(name), "files": _files(name, formats)} for name in specs],
        number=_number,
        size_name=size_name,
        edge=lambda observed: edge_text(*observed) if observed else "",
        interval=interval_text,
        style=_part("page.css"),
        script=_part("page.js"),
        library=_library(),
        specs=_as_script_data(specs),
    )


def _how_to_read(name: str) -> str:
    return _FORECAST_HOW_TO_READ if name.startswith(FORECAST) else _HOW_TO_READ.get(name, "")


def _forecast(forecast: Mapping[str, Any]) -> dict[str, Any]:
    """A forecast of a quantity, as the page shows it."""
    return {
        **forecast,
        "threshold_text": forecast_threshold_text(forecast),
        "headers": _rates(forecast),
        "by_size": _by_size(forecast),
        "best_runs": list({row["best_by"]: row for row in reversed(forecast["next_runs"])}.values())[::-1],
    }


def _rates(forecast: Mapping[str, Any]) -> list[float]:
    return list(dict.fromkeys(row["learning_rate"] for row in forecast["predictions"]))


def _by_size(forecast: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    """The predictions of each size, in the order of `_rates`."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in forecast["predictions"]:
        found.setdefault(row["n_params"], []).append(row)
    return found


def _part(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Bundling takes seconds, so the result is kept."""
    version = vega_lite_version()
    name = f"vega-lite-{version}-by-vl-convert-{metadata.version('vl-convert-python')}.js"
    content = cached(name, lambda: vl_convert.javascript_bundle(vl_version=version).encode())  # type: ignore[call-arg]
    return content.decode().replace("</script", "<\\/script")


def _as_script_data(specs: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON that no content of its own can end: `<` stands in strings only, where it may be written as an escape."""
    return json.dumps(specs, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _in_order(summary: Mapping[str, Any], key: str) -> list[str]:
    """The arms, or the scales from small to large, of the runs."""
    runs = sorted(summary["runs"], key=lambda run: run["n_params"]) if key == "scale" else summary["runs"]
    return list(dict.fromkeys(run[key] for run in runs))


def _files(name: str, formats: Collection[str]) -> list[dict[str, str]]:
    return [{"format": one.upper(), "href": f"analysis/{quote(name)}.{one}"} for one in formats]


def _runs(summary: Mapping[str, Any], found: Source, output: Path) -> list[dict[str, Any]]:
    """Every run with a link to its records, relative to the page where that can be."""
    return [
        {**run, "size": size_name(run["n_params"]), "href": _link(found.records.get(run["fingerprint"]), output)}
        for run in summary["runs"]
    ]


def _link(folder: Path | None, output: Path) -> str | None:
    if folder is None:
        return None
    try:
        relative = Path(os.path.relpath(folder.resolve(), output.resolve())).as_posix()
    except ValueError:  # on another drive
        return folder.resolve().as_uri()
    return quote(relative)


def _number(value: float | Sequence[float] | None) -> str:
    """A number in a few characters; a dash for what is not known."""
    if value is None:
        return "-"
    if isinstance(value, Sequence):
        return interval_text(value)
    return compact(value)
