"""Every bad command that is known, in one table; `tests/test_bad_input.py` runs it."""

from tests.bad_input import keys, preparation, records, runs, sweeps, tables, texts
from tests.bad_input.case import Case

CASES: tuple[Case, ...] = (
    *runs.run_cases(),
    *sweeps.sweep_cases(),
    *texts.text_cases(),
    *tables.table_cases(),
    *records.record_cases(),
    *preparation.preparation_cases(),
)
"""Written by hand."""

DERIVED: tuple[Case, ...] = (
    *keys.run_cases(),
    *keys.misspelt_cases(),
    *keys.text_cases(),
)
"""Made of the declarations of keys."""
