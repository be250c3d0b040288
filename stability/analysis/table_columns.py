"""Which column of a table file is what: the contract's names, aliases for those of other frameworks, and the rest."""

import difflib
import re
from collections.abc import Mapping, Sequence

from stability.analysis.source import RESERVED
from stability.analysis.table_parts import TableFile
from stability.errors import InputError

REQUIRED = ("n_params", "learning_rate", "loss")
OPTIONAL = (
    "arm",
    "scale",
    "seed",
    "status",
    "step",
    "steps",
    "loss_initial",
    "attention_logit_max",
    "attention_logit_max_final",
)
CONTRACT = REQUIRED + OPTIONAL
"""What a column of a table file can be read as; docs/records.md defines them."""
MEASURED = ("loss", "loss_initial", "attention_logit_max", "attention_logit_max_final")
"""Those that a quantity can be made of."""

RUN, PLACE = " run", " place"
"""Columns of ours while a table is read. No header of a CSV starts with a space; one of a Parquet file is not used."""

_HINTS = {
    "n_params": {"params", "parameters", "size", "n"},
    "learning_rate": {"lr", "rate", "eta"},
    "loss": {"loss", "nll", "entropy"},
    "step": {"step", "steps", "iteration", "iter", "update"},
}
"""Words of a column's name that make it worth proposing. Nothing is read by them."""

Roles = Mapping[str, tuple[str, ...]]
"""Contract name -> the columns of the file; more than one only for `arm`."""


def check_aliases(files: Sequence[TableFile], aliases: Mapping[str, str]) -> None:
    """Refuse aliases of what there is not.

    Raises:
        InputError: an alias is for no name of the contract, or names a column that none of the files has.
    """
    for name, wanted in aliases.items():
        if name not in CONTRACT:
            near = difflib.get_close_matches(name, CONTRACT, n=2)
            fix = f"Did you mean {' or '.join(f'column.{one}' for one in near)}?" if near else ""
            fix = fix or f"The columns of a table are {', '.join(CONTRACT)}; of others make quantities."
            raise InputError(f"column.{name}", wanted, "there is no such column in a table of runs", fix)
        if not files:
            problem = "names a column of a table, and no source is one"
            raise InputError(f"column.{name}", wanted, problem, "Leave it out, or add the table as a source.")
        if not any(_columns(name, wanted, file.header) for file in files):
            header = sorted({column for file in files for column in file.header if column})
            lacking = [one for one in _split(name, wanted) if one not in header] or [wanted]
            near = difflib.get_close_matches(lacking[0], header, n=3, cutoff=0.5)
            fix = f"Did you mean {' or '.join(near)}?" if near else f"There are {_listed(header)}."
            where = ", ".join(str(file.path) for file in files)
            raise InputError(f"column.{name}", wanted, f"{lacking[0]!r} is not a column of {where}", fix)


def roles_of(file: TableFile, aliases: Mapping[str, str]) -> Roles:
    """The file's columns by the contract's names: as the aliases say, else those of the same name.

    Raises:
        InputError: a column that every table must have is not there; the error proposes aliases.
    """
    named = {name: _columns(name, aliases.get(name, name), file.header) or _own(name, file) for name in CONTRACT}
    roles = {name: columns for name, columns in named.items() if columns}
    missing = [name for name in REQUIRED if name not in roles]
    if missing:
        raise InputError(
            "source",
            file.path,
            f"lacks the columns {', '.join(missing)}; it has {_listed(file.header)}",
            f"Say which they are: {' '.join(propose(name, file.header) for name in missing)}.",
        )
    return roles


def rest(file: TableFile, roles: Roles) -> tuple[list[str], list[str]]:
    """The columns that are read as nothing else: those that may be quantities, and those whose names are taken."""
    used = {column for columns in roles.values() for column in columns}
    others = [column for column in file.header if column and column not in used]
    taken = RESERVED.union(CONTRACT, (RUN, PLACE))
    return [name for name in others if name not in taken], [name for name in others if name in taken]


def propose(name: str, header: Sequence[str]) -> str:
    """The alias that a user may have wanted, as the command line takes it."""
    words = _HINTS.get(name, set())
    near = [column for column in header if words & set(re.split(r"[^a-z]+", column.lower()))]
    near += [one for one in difflib.get_close_matches(name, header, n=2) if one not in near]
    more = f" (or {', '.join(near[1:3])})" if near[1:] else ""
    return f"column.{name}={near[0] if near else 'COLUMN'}{more}"


def _columns(name: str, wanted: str, header: Sequence[str]) -> tuple[str, ...]:
    columns = (wanted,) if wanted in header else _split(name, wanted)
    return columns if columns and all(column and column in header for column in columns) else ()


def _split(name: str, wanted: str) -> tuple[str, ...]:
    """An arm may be made of several columns, with commas between them."""
    return tuple(part.strip() for part in wanted.split(",")) if name == "arm" else (wanted,)


def _own(name: str, file: TableFile) -> tuple[str, ...]:
    return (name,) if name in file.header else ()


def _listed(names: Sequence[str], most: int = 12) -> str:
    named = [name for name in names if name]
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")
