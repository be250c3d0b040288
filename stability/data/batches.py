"""Batches as a pure function of (data seed, step): nothing to checkpoint, and the same on every host.

The training tokens are cut in windows of T inputs each, which overlap in one token: a window's last target is the next
one's first input. Every window is used once in an epoch, in an order of the epoch's own.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from stability.data.permutation import epoch_key, permute
from stability.errors import InputError


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches made of some training tokens.

    Attributes:
        tokens: the training part of a corpus, uint8 [tokens].
        sequence_length: T, inputs (and targets) in a sequence.
        batch_size: B, sequences in a batch.

    Raises:
        InputError: the sequence length or batch size is below 1, or the tokens hold no window of T inputs and a target.
    """

    tokens: UInt8[np.ndarray, " tokens"]
    sequence_length: int
    batch_size: int

    def __post_init__(self) -> None:
        _check_sequence_length(self.sequence_length, len(self.tokens), "training")
        if self.batch_size < 1:
            raise InputError("training.batch_size", self.batch_size, "is below 1", "Set it to 1 or more.")

    @property
    def windows(self) -> int:
        """How many sequences an epoch has."""
        return (len(self.tokens) - 1) // self.sequence_length

    def batch(self, data_seed: int, step: int) -> Int32[np.ndarray, "B T+1"]:
        """The batch of one step, int32 [B, T+1]: inputs are its first T columns, targets its last T.

        Args:
            data_seed: which order; any integer.
            step: counts from 0. The batch that an epoch's end falls into goes on with the next epoch.

        Raises:
            ValueError: the step is negative.
        """
        only: Int32[np.ndarray, "B T+1"] = self.batches(data_seed, step, 1)[0]
        return only

    def batches(self, data_seed: int, start: int, count: int) -> Int32[np.ndarray, "count B T+1"]:
        """The batches of steps `start` to `start + count - 1`, int32 [count, B, T+1]; see `batch`.

        Raises:
            ValueError: `start` or `count` is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"steps are counted from 0, not start={start}, count={count}")
        order = self._order(data_seed, start * self.batch_size, (start + count) * self.batch_size)
        sequences = _windows(self.tokens, order, self.sequence_length)
        return sequences.reshape(count, self.batch_size, self.sequence_length + 1)

    def _order(self, data_seed: int, first: int, end: int) -> Int64[np.ndarray, " sequences"]:
        """Which window each of the sequences first..end-1, counted from step 0, is."""
        parts = [np.empty(0, np.int64)]
        while first < end:
            epoch, begin = divmod(first, self.windows)
            stop = min(self.windows, begin + end - first)
            parts.append(permute(np.arange(begin, stop), self.windows, epoch_key(data_seed, epoch)))
            first += stop - begin
        return np.concatenate(parts)


def validation_windows(
    tokens: UInt8[np.ndarray, " tokens"], sequence_length: int, count: int
) -> Int32[np.ndarray, "windows T+1"]:
    """A fixed choice of sequences, spread evenly over the validation part; the same for every run and seed.

    Args:
        tokens: the validation part of a corpus, uint8 [tokens].
        sequence_length: T, inputs (and targets) in a sequence.
        count: how many sequences; all of them where there are fewer.

    Returns:
        int32 [min(count, all), T+1]: inputs are the first T columns, targets the last T.

    Raises:
        InputError: the sequence length or count is below 1, or the tokens hold no window of T inputs and a target.
    """
    _check_sequence_length(sequence_length, len(tokens), "validation")
    if count < 1:
        raise InputError("training.validation_sequences", count, "is below 1", "Set it to 1 or more.")
    available = (len(tokens) - 1) // sequence_length
    chosen = min(count, available)
    return _windows(tokens, np.arange(chosen, dtype=np.int64) * available // chosen, sequence_length)


def _windows(
    tokens: UInt8[np.ndarray, " tokens"], order: Int64[np.ndarray, " sequences"], sequence_length: int
) -> Int32[np.ndarray, "sequences T+1"]:
    positions = order[:, None] * sequence_length + np.arange(sequence_length + 1)
    return tokens[positions].astype(np.int32)


def _check_sequence_length(sequence_length: int, available: int, part: str) -> None:
    key = "training.sequence_length"
    if sequence_length < 1:
        raise InputError(key, sequence_length, "is below 1", "Set it to 1 or more.")
    # One token more than the inputs: the last target.
    longest = available - 1
    if longest < 1:
        fix = "Give a longer text."
        raise InputError("data.path", f"{available} tokens in the {part} part", "hold no input with a target", fix)
    if sequence_length > longest:
        problem = f"is longer than the {part} part of the corpus allows ({available} tokens)"
        raise InputError(key, sequence_length, problem, f"Set it to {longest} or less, or give a longer text.")
