"""A long row of tokens read by position: an array in memory is one, and so are shards larger than memory."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32, Int64, Integer


class TokenSequence(Protocol):
    """What batches are cut from. A NumPy array of integers is one; positions may be beyond 2^31."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> Integer[np.ndarray, " tokens"]:
        """The tokens of a span, `start` and `stop` within the sequence and no step."""
        ...


class Split(NamedTuple):
    """The two parts of a corpus; together every token of it, once."""

    train: TokenSequence
    validation: TokenSequence


class JoinedTokens:
    """Several arrays as one sequence, in their order; a span may cross from one into the next.

    Args:
        parts: arrays of one integer dtype, [tokens] each; memory-mapped ones are read only where a span lies.
        dtype: their dtype, for where there are none.
    """

    def __init__(self, parts: Sequence[Integer[np.ndarray, " tokens"]], dtype: np.dtype[np.unsignedinteger]) -> None:
        self._parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))
        self._dtype = dtype

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, span: slice, /) -> Integer[np.ndarray, " tokens"]:
        start, stop = span.start, span.stop
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        pieces = []
        number = bisect_right(self._ends, start)
        while start < stop:
            part, end = self._parts[number], self._ends[number]
            begin = end - len(part)
            pieces.append(part[start - begin : min(stop, end) - begin])
            start, number = end, number + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self._dtype)


def windows(
    tokens: TokenSequence, starts: Int64[np.ndarray, " windows"], length: int
) -> Int32[np.ndarray, "windows length"]:
    """The `length` tokens from each of the starts on; nothing else of the sequence is read."""
    read = np.empty((len(starts), length), np.int32)
    for row, start in zip(read, starts.tolist(), strict=True):
        row[:] = tokens[start : start + length]
    return read
