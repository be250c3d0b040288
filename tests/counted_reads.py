"""`stability.run` that also tells, in `read.json`, how many training sequences it has read.

python -m tests.counted_reads ARGUMENTS
"""

import json
import sys
from pathlib import Path

import numpy as np

from stability.data.batches import Batches
from stability.run import main


def counted() -> int:
    """The command, counting."""
    batches_of, read = Batches.batches, [0]

    def counting(self: Batches, data_seed: int, start: int, count: int, rows: slice) -> np.ndarray:
        tokens = batches_of(self, data_seed, start, count, rows)
        read[0] += tokens.shape[0] * tokens.shape[1]
        return tokens

    Batches.batches = counting  # type: ignore[method-assign, assignment]
    code = main()
    Path("read.json").write_text(json.dumps(read[0]))
    return code


if __name__ == "__main__":
    sys.exit(counted())
