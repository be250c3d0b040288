"""The alarms that fired in many runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stability.analysis.alarms.warning import early_warning
from stability.tracking.record import RunFolder


def fired_alarms(records: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Every alarm that fired, run by run, the first of each run first. Reads all rows: some 20 ms a run.

    Args:
        records: fingerprint -> the run's folder; one without metrics has no alarms.
    """
    return [
        {"fingerprint": fingerprint, **row}
        for fingerprint, folder in sorted(records.items())
        if RunFolder(folder).metrics.is_file()
        for row in early_warning(folder).drop_nulls("first_step").iter_rows(named=True)
    ]
