"""Search for the training molecules most similar to a molecule.

Similarity is that of Tanimoto (Jaccard) between sets of circular substructures, ECFP4 hashed to
1,024 bits: the share of bits that both have among those that one has. Of two molecules with a and b
bits it is at most min(a, b) / max(a, b) (Swamidass and Baldi 2007), so that molecules sorted by
their number of bits are searched outwards from the number of the query, and most are never looked
at.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from models.data.fingerprint import SIMILARITY_BITS
from models.errors import ArtifactError
from models.ops.jit import kernel

WORDS = SIMILARITY_BITS // 64
_ESCAPE = 255
Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Neighbours:
    """The molecules of a set that are most similar to a molecule, the most similar first; of equal
    similarity, the one with the smaller row first.

    Attributes:
        rows: (k,) int32, rows of the source.
        similarities: (k,) float64, in [0, 1].
    """

    rows: NDArray[np.int32]
    similarities: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MoleculeSet:
    """Fingerprints of M molecules, sorted by their number of bits, then by row.

    Attributes:
        fingerprints: (M, WORDS) uint64, from `packed`.
        rows: (M,) int32, rows of the source.
    """

    fingerprints: Words
    rows: NDArray[np.int32]

    @classmethod
    def sorted(cls, fingerprints: Words, rows: NDArray[np.int32]) -> "MoleculeSet":
        """Make a set of molecules in any order."""
        order = np.lexsort((rows, _bit_counts(fingerprints)))
        return cls(np.ascontiguousarray(fingerprints[order]), rows[order])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(SIMILARITY_BITS + 2,): molecules `starts[c]` to `starts[c + 1]` have c bits."""
        counts = np.bincount(_bit_counts(self.fingerprints), minlength=SIMILARITY_BITS + 1)
        return np.concatenate([[0], counts.cumsum()])

    def check(self) -> None:
        """Raise ArtifactError if the molecules are not sorted, a molecule has no bit, or a row is
        negative or given twice."""
        counts = _bit_counts(self.fingerprints)
        if (counts < 1).any():
            raise ArtifactError("fingerprints: got a molecule without bits, expected some of each")
        if (np.lexsort((self.rows, counts)) != np.arange(len(self))).any():
            expected = "expected them by number of bits, then by row"
            raise ArtifactError(f"fingerprints: got molecules that are not sorted, {expected}")
        if self.rows.min() < 0 or len(np.unique(self.rows)) < len(self):
            expected = "expected different ones, none negative"
            raise ArtifactError(f"rows: got a row twice, or a negative one, {expected}")

    def nearest(self, query: Words, most: int) -> Neighbours:
        """Find the molecules that are most similar to a molecule; exact.

        Args:
            query: (WORDS,) uint64, its fingerprint.
            most: number of molecules to find, at least 1; fewer are found in a smaller set.
        """
        count = min(most, len(self))
        found, shared = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        united = np.ones(count, np.int64)
        bits = int(_bit_counts(query[None])[0])
        sets = self.fingerprints, self.starts, self.rows
        _search(*sets, query, bits, found, shared, united)
        return Neighbours(self.rows[found], shared / united)


def packed(bits: NDArray[np.bool_]) -> Words:
    """Pack the bits of fingerprints, (M, SIMILARITY_BITS) -> (M, WORDS); bit i is bit i % 64 of
    word i // 64."""
    words: Words = np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return words


def encoded(fingerprints: Words) -> Bytes:
    """Write fingerprints in few bytes: the distance of every set bit from the one before, across
    molecules; a byte 255 adds 255 to the distance that follows. About a byte a set bit."""
    unpacked = np.unpackbits(fingerprints.astype("<u8").view(np.uint8), bitorder="little")
    positions = np.flatnonzero(unpacked)
    gaps = np.diff(positions, prepend=0)
    out = np.full(int((gaps // _ESCAPE + 1).sum()), _ESCAPE, np.uint8)
    out[(gaps // _ESCAPE + 1).cumsum() - 1] = gaps % _ESCAPE
    return out


def decoded(data: Bytes, molecules: int) -> Words:
    """Read what `encoded` wrote, fingerprints (molecules, WORDS). Raises ArtifactError: the bytes
    are not those of so many molecules."""
    positions = np.cumsum(data, dtype=np.int64)[data != _ESCAPE]
    size = molecules * SIMILARITY_BITS
    if not len(positions) or positions[-1] >= size or (np.diff(positions) < 1).any():
        got = "fingerprints: got bits that are not in order, or beyond the last molecule"
        raise ArtifactError(f"{got}, expected those of {molecules} molecules")
    flat = np.zeros(size // 8, np.uint8)
    np.add.at(flat, positions >> 3, np.uint8(1) << (positions & 7).astype(np.uint8))
    return flat.view("<u8").astype(np.uint64).reshape(molecules, WORDS)


def _bit_counts(fingerprints: Words) -> NDArray[np.int64]:
    """Count the bits of fingerprints, (M, WORDS) -> (M,)."""
    of_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
    counts: NDArray[np.int64] = of_byte[fingerprints.view(np.uint8)].sum(axis=1, dtype=np.int64)
    return counts


def _count_bits(_: Any, word: Any) -> Any:
    """Generate code that counts the bits of a word, by the processor's own instruction, for which
    numba has no name."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(word), generate


_popcount: Any = intrinsic(_count_bits)


@kernel
def _search(
    fingerprints: Words,
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    query: Words,
    bits: int,
    found: NDArray[np.int64],
    shared: NDArray[np.int64],
    united: NDArray[np.int64],
) -> None:
    """Fill `found` with the positions of the nearest molecules, and `shared` and `united` with the
    bits that both and that one of the two have.

    Similarities are compared as fractions of integers: no rounding decides a tie.
    """
    last, most = len(found) - 1, len(starts) - 2
    below, above = bits, bits + 1
    while below >= 0 or above <= most:
        # The bound of `below` is below / bits, that of `above` bits / above.
        if above > most or (below >= 0 and below * above >= bits * bits):
            count, low, high = below, below, bits
            below -= 1
        else:
            count, low, high = above, bits, above
            above += 1
        if found[last] >= 0 and low * united[last] < shared[last] * high:
            break  # All that are left are farther than this.
        for k in range(starts[count], starts[count + 1]):
            common = 0
            for word in range(len(query)):
                common += _popcount(fingerprints[k, word] & query[word])
            total = bits + count - common
            place = last + 1
            while place > 0:
                other = found[place - 1]
                ours, theirs = common * united[place - 1], shared[place - 1] * total
                if other >= 0 and (ours < theirs or (ours == theirs and rows[k] > rows[other])):
                    break
                place -= 1
            if place > last:
                continue
            for j in range(last, place, -1):
                found[j], shared[j], united[j] = found[j - 1], shared[j - 1], united[j - 1]
            found[place], shared[place], united[place] = k, common, total
