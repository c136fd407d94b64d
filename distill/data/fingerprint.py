"""The fingerprint of a data set: names, sizes, labels and contents of its records, wherever they
lie.

Names and labels are known, a size costs a stat of a file, reading costs more. So a set of up to
10,000 records and 64 MB is read completely. Of a larger one the contents of a fixed sample of
records count, and of more than 100,000 files the sizes of a fixed sample: there the replacement of
one image by another of the same name and size may not be noticed. Costs are in docs/log.md.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from distill.rng import hash64, hash64_array

_READ_WHOLE = 10_000
_READ_WHOLE_BYTES = 64 * 10**6
_MOST_SIZES = 100_000
_MOST_READ = 256


def fingerprint(
    labels: np.ndarray,
    names: bytes,
    sizes: Callable[[np.ndarray], np.ndarray],
    read: Callable[[int], bytes | np.ndarray],
) -> str:
    """SHA-256 over what N records are.

    Args:
        labels: [N] int64.
        names: the names of the records below their root, in order; empty if they have none.
        sizes: [n] indices -> [n] int64 bytes of the records.
        read: as `Source.read`.
    """
    count = len(labels)
    measured = _sample(count, _MOST_SIZES)
    found = np.asarray(sizes(measured), dtype=np.int64)
    whole = count <= _READ_WHOLE and int(found.sum()) <= _READ_WHOLE_BYTES
    digest = hashlib.sha256(np.asarray(labels, dtype=np.int64).tobytes())
    for part in (names, found.tobytes()):
        digest.update(hashlib.sha256(part).digest())
    for index in (measured if whole else _sample(count, _MOST_READ)).tolist():
        try:
            record = read(index)
        except OSError:
            record = b"unreadable"
        digest.update(
            hashlib.sha256(record if isinstance(record, bytes) else record.tobytes()).digest()
        )
    return digest.hexdigest()


def _sample(count: int, most: int) -> np.ndarray:
    """[min(count, most)] of 0..count-1, ascending, spread by a hash: neighbours are often alike."""
    if count <= most:
        return np.arange(count)
    hashes = hash64_array(hash64("fingerprint"), np.arange(count))
    return np.sort(np.argpartition(hashes, most)[:most])
