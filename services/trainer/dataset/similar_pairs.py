"""Pairs of similar vectors at a cost that grows with the number of vectors, not with its square.

The search uses an inverted index, rarest terms first. A row reads the columns that share its rarest terms, as many as
its share of `MAX_READ` allows. Its other terms can add at most their norm to a dot product, so:

- A row whose unread terms have a norm below the threshold loses no pair. That is so for every row of a small dataset,
  and for every row with terms that are not in most texts.
- Other rows consist almost only of terms that very many texts share. They keep the columns closest by the terms that
  were read, and neighbours among those with which they share a MinHash band. Vectors with the same terms share all
  bands and are neighbours in each, so they are compared, directly or through others with the same terms. Two vectors
  with a Jaccard index of terms J share no band with a probability of (1 - J^6)^16: 0.0006 % at 0.9, 0.8 % at 0.8.

Products that pass the bound are computed exactly. datasketch has the same MinHash bands for Python sets; here the
terms are columns of a matrix already, and one pass over it takes seconds instead of a minute for 100,000 texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

Matrix: TypeAlias = csr_matrix
"""Sparse float32 matrix; a pair that is not stored has similarity 0."""
Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]

MAX_READ: Final = 1_000_000_000
"""Entries of the index that one search may read, over all rows."""
LEAST_READ: Final = 4096
"""Entries that each row may read, however many rows there are."""
MAX_CHECKED: Final = 25_000_000
"""Pairs whose product one search may complete, over all rows."""
LEAST_CHECKED: Final = 256
"""Pairs that each row may complete, however many rows there are."""
MAX_PAIRS_PER_ROW: Final = 512
"""Most similar columns that a search keeps for a row."""
BANDS: Final = 16
BAND_WIDTH: Final = 6
NEXT: Final = 3
"""Vectors of the same band that a limited row is compared with, besides the first of them."""
ROUNDING: Final = np.float32(1e-6)
"""Tolerance of a threshold, because the order of a sum changes its last digits."""
_BLOCK_ENTRIES: Final = 4_000_000
_BLOCK_ROWS: Final = 4096
_CHUNK: Final = 200_000
"""Pairs multiplied at a time."""


@dataclass
class SearchCost:
    """Cost of searches, for tests of its growth: index entries read, products completed, rows not searched fully."""

    read: int = 0
    checked: int = 0
    limited_rows: int = 0


@dataclass(frozen=True)
class Limits:
    """Limits of one search; `cost` counts."""

    read: int = MAX_READ
    least_read: int = LEAST_READ
    checked: int = MAX_CHECKED
    least_checked: int = LEAST_CHECKED
    pairs_per_row: int = MAX_PAIRS_PER_ROW
    cost: SearchCost = field(default_factory=SearchCost)


def similar_pairs(
    rows: Matrix, columns: Matrix | None, threshold: float, limits: Limits | None = None
) -> Matrix:
    """Return the dot products of at least `threshold`, as a (rows, columns) matrix with sorted indices.

    Args:
        rows: (n, terms) vectors with non-negative entries and norms of at most 1.
        columns: (m, terms) vectors likewise. None: the rows are compared with each other. Then the result is
            symmetric, and has no pair of a row with itself.
        threshold: Smallest dot product of a pair.
        limits: Limits of the search.

    """
    limits = limits or Limits()
    others = rows if columns is None else columns
    shape = (rows.shape[0], others.shape[0])
    if not all(shape) or not rows.nnz or not others.nnz:
        return csr_matrix(shape, dtype=np.float32)
    least = np.float32(threshold) - ROUNDING
    read, unread, unread_norm = _split(rows, others, max(limits.least_read, limits.read // shape[0]))
    blocks = list(_products(read, unread, unread_norm, others, least, limits))
    found = vstack(blocks, format="csr")
    limited = np.flatnonzero(unread_norm >= least)
    limits.cost.limited_rows += len(limited)
    if len(limited):
        found = found.maximum(_exact(rows, others, *_in_one_band(rows, columns, limited), least, limits))
    if columns is not None:
        return _nearest(found, limits.pairs_per_row)
    found.data[found.indices == np.repeat(np.arange(shape[0]), np.diff(found.indptr))] = 0
    found.eliminate_zeros()
    return found.maximum(found.T.tocsr())


def products(left: Matrix, right: Matrix, pairs: tuple[Integers, Integers]) -> Floats:
    """Return the dot products of the given rows of `left` with the given rows of `right`."""
    one, other = pairs
    out = np.zeros(len(one), dtype=np.float32)
    for start in range(0, len(one), _CHUNK):
        part = slice(start, start + _CHUNK)
        out[part] = left[one[part]].multiply(right[other[part]]).sum(axis=1).A1
    return out


def _split(rows: Matrix, columns: Matrix, budget: int) -> tuple[Matrix, Matrix, Floats]:
    """Return the terms of each row that are read, those that are not, and the norm of the latter.

    Terms are read from the rarest on, until the columns that have them are more than `budget`.
    """
    frequency = np.bincount(columns.indices, minlength=columns.shape[1])
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, frequency[rows.indices], row_of))
    reads = np.cumsum(frequency[rows.indices[order]], dtype=np.int64)
    starts = rows.indptr[:-1]
    before = np.concatenate(([0], reads))[starts]
    is_read = np.empty(rows.nnz, dtype=np.bool_)
    is_read[order] = reads - np.repeat(before, np.diff(rows.indptr)) <= budget
    read, unread = rows.copy(), rows.copy()
    read.data = np.where(is_read, rows.data, 0)
    unread.data = np.where(is_read, 0, rows.data)
    read.eliminate_zeros()
    unread.eliminate_zeros()
    norm = np.sqrt(np.bincount(row_of, np.where(is_read, 0, rows.data) ** 2, minlength=rows.shape[0]))
    return read, unread, norm.astype(np.float32)


def _products(
    read: Matrix, unread: Matrix, unread_norm: Floats, columns: Matrix, least: np.float32, limits: Limits
) -> Iterator[Matrix]:
    """Yield the products of blocks of rows with all columns, as far as they reach `least`."""
    index = columns.T.tocsr()
    terms = np.unique(unread.indices)
    unread, columns_unread = unread[:, terms], columns[:, terms]
    frequency = np.diff(index.indptr)
    entries = np.concatenate(([0], np.cumsum(frequency[read.indices], dtype=np.int64)))[read.indptr]
    limits.cost.read += int(entries[-1])
    checked = max(limits.least_checked, limits.checked // read.shape[0])
    start = 0
    while start < read.shape[0]:
        end = int(np.searchsorted(entries, entries[start] + _BLOCK_ENTRIES, side="right")) - 1
        end = min(max(end, start + 1), start + _BLOCK_ROWS, read.shape[0])
        block = read[start:end] @ index
        norms = np.repeat(unread_norm[start:end], np.diff(block.indptr))
        block.data[block.data + norms < least] = 0
        block.eliminate_zeros()
        if unread_norm[start:end].any():
            block = _nearest(block, checked)
            coo = block.tocoo()
            is_partial = unread_norm[start:end][coo.row] > 0
            rest = products(unread[start:end], columns_unread, (coo.row[is_partial], coo.col[is_partial]))
            limits.cost.checked += len(rest)
            coo.data[is_partial] += rest
            coo.data[coo.data < least] = 0
            block = coo.tocsr()
            block.eliminate_zeros()
        yield _nearest(block, limits.pairs_per_row + 1)
        start = end


def _nearest(matrix: Matrix, count: int) -> Matrix:
    """Return the `count` largest entries of each row, of equal ones those of lower columns, with sorted indices."""
    matrix.sort_indices()
    sizes = np.diff(matrix.indptr)
    if matrix.nnz == 0 or sizes.max() <= count:
        return matrix
    for row in np.flatnonzero(sizes > count):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        least = np.partition(values, -count)[-count]
        equal = np.flatnonzero(values == least)
        spare = count - np.count_nonzero(values > least)
        values[values < least] = 0
        values[equal[spare:]] = 0
    matrix.eliminate_zeros()
    return matrix


def _exact(
    rows: Matrix, columns: Matrix, one: Integers, other: Integers, least: np.float32, limits: Limits
) -> Matrix:
    values = products(rows, columns, (one, other))
    limits.cost.checked += len(values)
    kept = values >= least
    shape = (rows.shape[0], columns.shape[0])
    return csr_matrix((values[kept], (one[kept], other[kept])), shape=shape)


def _in_one_band(rows: Matrix, columns: Matrix | None, limited: Integers) -> tuple[Integers, Integers]:
    """Return distinct pairs of a limited row with columns of the same MinHash band.

    Vectors of a band are sorted by their whole signature; each is compared with the next ones and with the first. If
    rows and columns differ, each row is compared with the columns nearest to it in that order, on both sides, and with
    the first.
    """
    signatures = _signatures(rows[limited])
    if columns is not None:
        signatures = np.vstack((signatures, _signatures(columns)))
    whole = _hash_rows(signatures)
    count = len(limited)
    found: list[Integers] = []
    for band in range(BANDS):
        keys = _hash_rows(signatures[:, band * BAND_WIDTH : (band + 1) * BAND_WIDTH])
        order = np.lexsort((whole, keys))
        sorted_keys = keys[order]
        new = np.concatenate(([True], sorted_keys[1:] != sorted_keys[:-1]))
        bucket = np.cumsum(new) - 1
        if columns is None:
            first = order[np.flatnonzero(new)][bucket]
            later = np.flatnonzero(~new)
            found.append(np.stack((first[later], order[later])))
            for distance in range(1, NEXT + 1):
                later = distance + np.flatnonzero(bucket[distance:] == bucket[:-distance])
                found.append(np.stack((order[later - distance], order[later])))
            continue
        is_row = order < count
        positions = np.arange(len(order))
        column_at = np.where(is_row, -1, positions)
        left = np.maximum.accumulate(column_at)
        right = np.where(is_row, len(order), positions)
        right = np.minimum.accumulate(right[::-1])[::-1]
        starts = np.flatnonzero(new)
        first_column = right[starts][bucket]
        for partner in (left, right, first_column):
            inside = is_row & (partner >= 0) & (partner < len(order))
            inside[inside] = bucket[partner[inside]] == bucket[inside]
            found.append(np.stack((order[inside], order[partner[inside]] - count)))
    pairs = np.unique(np.concatenate(found, axis=1), axis=1)
    if columns is None:
        return limited[pairs[0]], limited[pairs[1]]
    return limited[pairs[0]], pairs[1]


def _signatures(matrix: Matrix) -> NDArray[np.uint32]:
    """Return (n, BANDS * BAND_WIDTH) MinHash values of the terms of each row; rows without terms get the maximum."""
    count = BANDS * BAND_WIDTH
    out = np.full((matrix.shape[0], count), np.iinfo(np.uint32).max, dtype=np.uint32)
    filled = np.flatnonzero(np.diff(matrix.indptr))
    if not len(filled):
        return out
    starts = matrix.indptr[filled]
    dice = np.random.default_rng(0)
    for number in range(count):
        value_of = dice.integers(0, np.iinfo(np.uint32).max, size=matrix.shape[1], dtype=np.uint32)
        out[filled, number] = np.minimum.reduceat(value_of[matrix.indices], starts)
    return out


def _hash_rows(values: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each row."""
    out = np.zeros(len(values), dtype=np.uint64)
    for column in values.T:
        out = (out ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out
