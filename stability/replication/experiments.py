"""Which sweeps are the paper's experiments, and in what order the paper has them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stability.errors import InputError
from stability.replication import PAPER
from stability.untrusted.yaml_text import read_yaml

_PLACE = re.compile(r"(Section|Appendix) ([\w.]+?)(?:, Figures? ([\w.]+))?(?:[, ]|$)")


def experiments(sweep_folders: Iterable[Path]) -> dict[str, str]:
    """Sweep -> its source, of every sweep file whose `source` is the paper, in the paper's order.

    Args:
        sweep_folders: folders that hold `sweep/NAME.yaml`; of two files of one name the first counts.

    Raises:
        InputError: a sweep file is no YAML.
    """
    found: dict[str, str] = {}
    for folder in sweep_folders:
        for path in sorted((folder / "sweep").glob("*.yaml")):
            found.setdefault(path.stem, _source(path))
    ours = {name: source for name, source in found.items() if source.startswith(PAPER)}
    return dict(sorted(ours.items(), key=lambda item: (_place(item[1]), item[0])))


def chosen(experiments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The experiments of these names, in the paper's order; all where none is named.

    Raises:
        InputError: there is no experiment of such a name.
    """
    for name in names:
        if name not in experiments:
            raise InputError(
                "sweeps", name, f"is no sweep whose source is {PAPER}", f"Choose from: {', '.join(experiments)}."
            )
    return [name for name in experiments if not names or name in names]


def _source(path: Path) -> str:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), "file", path)
    except UnicodeDecodeError as error:
        raise InputError("file", path, f"is not YAML ({error})", "Mend it.") from None
    sweep = content.get("sweep") if isinstance(content, Mapping) else None
    return str(sweep.get("source", "")) if isinstance(sweep, Mapping) else ""


def _place(source: str) -> tuple[object, ...]:
    """Sorts sections before appendices, 3.2 before 3.10, and in one appendix by the first figure."""
    match = _PLACE.search(source.partition(PAPER)[2])
    if match is None:
        return (2, (), ())
    kind, section, figure = match.groups()
    return int(kind == "Appendix"), _natural(section), _natural(figure or "")


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in text.strip(".").split("."))
