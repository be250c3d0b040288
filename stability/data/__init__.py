"""Corpora, their split, and batches as a pure function of (data seed, step). NumPy only; imports no JAX."""

from stability.data.batches import Batches, validation_windows
from stability.data.corpus import BYTE_VOCABULARY_SIZE, END_OF_SEQUENCE, Corpus, load_corpus, split
from stability.data.permutation import epoch_key, permute
from stability.data.sequence import JoinedTokens, Split, TokenSequence
from stability.data.shards import ShardedCorpus, load_shards

__all__ = [
    "BYTE_VOCABULARY_SIZE",
    "END_OF_SEQUENCE",
    "Batches",
    "Corpus",
    "JoinedTokens",
    "ShardedCorpus",
    "Split",
    "TokenSequence",
    "epoch_key",
    "load_corpus",
    "load_shards",
    "permute",
    "split",
    "validation_windows",
]
