"""Random numbers without a generator: each is a pure function of the integers that name it.

Shuffles and augmentations are drawn from a counter-based hash instead of a stateful generator, so the number
for (seed, epoch, sample, view) is the same on any rank, in any order, before and after a restart. The mixing
function is the finaliser of SplitMix64 (Steele et al., 2014, https://doi.org/10.1145/2714064.2660195),
applied once per key. numpy's own generators are not used because numpy does not
promise equal streams over its versions.
"""

from __future__ import annotations

import hashlib

import numpy as np

DIGEST_BYTES = 16  # two of 10^9 different images share one with a probability of 10^-21

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def hash64(*keys: int | np.ndarray) -> np.ndarray:
    """Hashes integers, broadcast against each other, to uint64. The order of the keys matters."""
    state = np.asarray(_GOLDEN)
    with np.errstate(over="ignore"):
        for key in keys:
            state = _mix((state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) for the integers that name it; 53 random bits."""
    return (hash64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(num: int, *keys: int) -> np.ndarray:
    """A permutation of range(num) as int64, the same for the same keys everywhere."""
    return np.argsort(hash64(*keys, np.arange(num, dtype=np.uint64)), kind="stable")


def image_digest(data: bytes) -> bytes:
    """What tells an image's bytes from those of others: half of their SHA-256, for which processors have
    instructions.
    """
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
