"""Batches as a pure function of (data seed, step): nothing to checkpoint, and the same on every host.

The training tokens are cut in windows of T inputs each, which overlap in one token: a window's last target is the next
one's first input. Every window is used once in an epoch, in an order of the epoch's own.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from stability.data.permutation import epoch_key, permute
from stability.data.sequence import TokenSequence, windows
from stability.errors import InputError

ALL_ROWS = slice(None)


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches made of some training tokens.

    Attributes:
        tokens: the training part of a corpus.
        sequence_length: T, inputs (and targets) in a sequence.
        batch_size: B, sequences in a batch.

    Raises:
        InputError: the sequence length or batch size is below 1, or the tokens hold no window of T inputs and a target.
    """

    tokens: TokenSequence
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

    def batches(
        self, data_seed: int, start: int, count: int, rows: slice = ALL_ROWS
    ) -> Int32[np.ndarray, "count rows T+1"]:
        """The batches of steps `start` to `start + count - 1`, int32 [count, B, T+1]; see `batch`.

        Args:
            data_seed: which order; any integer.
            start: the first step, counted from 0.
            count: how many steps.
            rows: which sequences of each batch. Process p of P takes `slice(p, None, P)` or its own block, and reads
                those tokens only; put side by side, the processes' rows are the whole batch.

        Raises:
            ValueError: `start` or `count` is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"steps are counted from 0, not start={start}, count={count}")
        steps = np.arange(start, start + count, dtype=np.int64)
        sequences = steps[:, None] * self.batch_size + np.arange(self.batch_size)[rows]
        order = self._order(data_seed, sequences.ravel())
        read = windows(self.tokens, order * self.sequence_length, self.sequence_length + 1)
        return read.reshape(*sequences.shape, self.sequence_length + 1)

    def _order(self, data_seed: int, sequences: Int64[np.ndarray, " sequences"]) -> Int64[np.ndarray, " sequences"]:
        """Which window each of the sequences, counted from step 0, is."""
        epochs, places = np.divmod(sequences, self.windows)
        order = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order[here] = permute(places[here], self.windows, epoch_key(data_seed, epoch))
        return order


def validation_windows(tokens: TokenSequence, sequence_length: int, count: int) -> Int32[np.ndarray, "windows T+1"]:
    """A fixed choice of sequences, spread evenly over the validation part; the same for every run and seed.

    Args:
        tokens: the validation part of a corpus.
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
    order = np.arange(chosen, dtype=np.int64) * available // chosen
    return windows(tokens, order * sequence_length, sequence_length + 1)


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
