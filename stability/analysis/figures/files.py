"""Figures as files, and as the specification that a page draws."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from stability.analysis.figures.style import POINTED_AT, Chart
from stability.formats import FORMATS, Format
from stability.tracking.files import write_whole


def specification(chart: Chart) -> dict[str, Any]:
    """A chart as Vega-Lite, its data included."""
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = chart.to_dict()
    return spec


def vega_lite_version() -> str:
    """The version of Vega-Lite that the charts are made for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def save_all(specs: Mapping[str, Mapping[str, Any]], folder: Path, formats: Collection[Format] = FORMATS) -> None:
    """Write `folder/NAME.FORMAT` for each figure and format, each replaced in one step, and remove all other figures.

    Figures of an earlier analysis would show what is no longer so.

    Args:
        specs: name -> chart, as `specification` gives it.
        folder: exists.
        formats: which files.

    Raises:
        OSError: the folder cannot be written to.
    """
    wanted = {f"{name}.{one}" for name in specs for one in formats}
    for path in folder.iterdir():
        if path.suffix[1:] in FORMATS and path.name not in wanted:
            path.unlink()
    for name, spec in specs.items() if formats else ():
        svg = vl_convert.vegalite_to_svg(_to_look_at(spec), vl_version=vega_lite_version())
        for one in formats:
            write_whole(folder / f"{name}.{one}", _CONVERT[one](svg))


def _to_look_at(spec: Any) -> Any:
    """A specification without the marks that only a pointer finds."""
    if isinstance(spec, Mapping):
        return {key: _to_look_at(value) for key, value in spec.items() if key not in ("datasets", "data")} | {
            key: spec[key] for key in ("datasets", "data") if key in spec
        }
    if isinstance(spec, list):
        return [_to_look_at(one) for one in spec if not (isinstance(one, Mapping) and one.get("name") == POINTED_AT)]
    return spec


_CONVERT: Mapping[Format, Callable[[str], bytes]] = {
    "svg": str.encode,
    "pdf": vl_convert.svg_to_pdf,
    "png": lambda svg: bytes(vl_convert.svg_to_png(svg, scale=2)),
}
