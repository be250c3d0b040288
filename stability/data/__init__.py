"""Corpora, their split, and batches as a pure function of (data seed, step). NumPy only; imports no JAX."""

from stability.data.batches import Batches, validation_windows
from stability.data.corpus import BYTE_VOCABULARY_SIZE, END_OF_SEQUENCE, Corpus, Split, load_corpus, split
from stability.data.permutation import epoch_key, permute

__all__ = [
    "BYTE_VOCABULARY_SIZE",
    "END_OF_SEQUENCE",
    "Batches",
    "Corpus",
    "Split",
    "epoch_key",
    "load_corpus",
    "permute",
    "split",
    "validation_windows",
]
