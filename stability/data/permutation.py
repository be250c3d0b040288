"""A random order computed, not stored: a keyed bijection of range(n) in integer arithmetic, the same on every host.

A Feistel network permutes the smallest set of 2^bits numbers that holds range(n); a number that lands outside range(n)
is sent through again until it lands inside (cycle-walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
2002). That set is at most twice as large as range(n), unless n is 1, so two passes are enough on average.
"""

import numpy as np
from jaxtyping import Int64, UInt64

MASK_64 = (1 << 64) - 1
ROUNDS = 8
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def splitmix64(value: int) -> int:
    """SplitMix64's output for the state `value` modulo 2^64: a bijection of 64-bit numbers that mixes every bit.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, figure 17, with the constants
    of its public-domain implementation by Vigna.
    """
    z = (value + GOLDEN_GAMMA) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return z ^ (z >> 31)


def epoch_key(data_seed: int, epoch: int) -> int:
    """The key of an epoch's order, 64 bits; neighbouring seeds and epochs have unrelated keys."""
    # Seeds may come as NumPy scalars, whose sums would overflow.
    return splitmix64(splitmix64(int(data_seed)) + int(epoch))


def permute(index: Int64[np.ndarray, "*shape"], n: int, key: int) -> Int64[np.ndarray, "*shape"]:
    """Where the permutation of range(n) named by `key` sends each index.

    Args:
        index: positions in the order, each in range(n); any shape.
        n: how many things are put in order, at least 1.
        key: which order; any integer, of which the low 64 bits count.

    Returns:
        Values in range(n), of the index's shape: over all of range(n) each occurs once.

    Raises:
        ValueError: an index lies outside range(n).
    """
    if index.size and not (index.min() >= 0 and index.max() < n):
        raise ValueError(f"index reaches from {index.min()} to {index.max()}, outside range({n})")
    # Two bits at least, since each half of the network needs one.
    bits = max(2, (n - 1).bit_length())
    keys = [splitmix64(key + i * GOLDEN_GAMMA) for i in range(ROUNDS)]
    values = index.astype(np.uint64).ravel()
    walking = np.arange(values.size)
    while walking.size:
        values[walking] = _feistel(values[walking], bits, keys)
        walking = walking[values[walking] >= n]
    return values.astype(np.int64).reshape(index.shape)


def _feistel(values: UInt64[np.ndarray, " k"], bits: int, keys: list[int]) -> UInt64[np.ndarray, " k"]:
    """Permute range(2^bits): each half in turn is changed by a function of the other, which undoing would read off."""
    low_bits = bits // 2
    high_bits = bits - low_bits
    high, low = values >> np.uint64(low_bits), values & np.uint64((1 << low_bits) - 1)
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        low = low ^ _mix(high, first, low_bits)
        high = high ^ _mix(low, second, high_bits)
    return high << np.uint64(low_bits) | low


def _mix(half: UInt64[np.ndarray, " k"], key: int, bits: int) -> UInt64[np.ndarray, " k"]:
    """A keyed hash of each element, its top `bits` bits: the finalizer of MurmurHash3, whose multiplications wrap."""
    mixed = (half ^ np.uint64(key)) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed >> np.uint64(64 - bits)
