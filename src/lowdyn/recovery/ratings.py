"""From ratings with ids of any kind to a sparse matrix: the one place that knows ids."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


class RatingError(ValueError):
    """A rating cannot be used; ``position`` counts the ratings before it."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"rating {position}: {reason}")
        self.position = position
        self.reason = reason


def ratings_matrix(frame_or_triples: Any) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    """Return ratings as a matrix, with the ids of its rows and of its columns in the order in which they came.

    ``frame_or_triples`` is an iterable of (row id, column id, value), read once and not kept, or a DataFrame of which
    the first three columns are that. Ids are hashable and told apart by equality. The matrix is a SciPy CSR array
    (row ids, column ids) of float64, a stored zero being a rating of zero; the ids are arrays (rows,) and (columns,).

    RatingError, a ValueError, for a value that is no finite number, a missing or unhashable id, or a pair of ids that
    comes twice: the first such rating is named. TypeError for a DataFrame with fewer than three columns.

    >>> matrix, users, films = ratings_matrix([("ann", "Alien", 5), ("bob", "Brazil", 3), ("ann", "Brazil", 4)])
    >>> matrix.toarray(), users.tolist(), films.tolist()
    (array([[5., 4.],
           [0., 3.]]), ['ann', 'bob'], ['Alien', 'Brazil'])
    """
    ids: tuple[dict[Hashable, int], dict[Hashable, int]] = ({}, {})
    codes, values = (array("i"), array("i")), array("d")
    for position, triple in enumerate(_triples(frame_or_triples)):
        try:
            row, column, value = triple
            number = float(value)
            for one, known, held in zip((row, column), ids, codes, strict=True):
                held.append(known.setdefault(one, len(known)))
        except (TypeError, ValueError) as error:
            raise RatingError(position, f"needed (row id, column id, number), got {triple!r}: {error}") from error
        if not math.isfinite(number):
            raise RatingError(position, f"its value is {number}; leave out what is not known")
        try:  # None, or NaN, from a frame with gaps
            missing = row is None or column is None or bool(row != row or column != column)
        except TypeError:  # pandas.NA does not say whether it is itself
            missing = True
        if missing:
            raise RatingError(position, f"an id is missing: {row!r}, {column!r}")
        values.append(number)
    rows, columns = (np.frombuffer(one, np.int32) if one else np.empty(0, np.int32) for one in codes)
    shape = (len(ids[0]), len(ids[1]))
    matrix = sparse.coo_array((np.array(values), (rows, columns)), shape=shape).tocsr()
    if matrix.nnz < len(values):  # tocsr adds up what comes twice
        position = _first_repeat(rows, columns)
        names = [list(known)[one[position]] for known, one in zip(ids, (rows, columns), strict=True)]
        raise RatingError(position, f"({names[0]!r}, {names[1]!r}) has a rating already; keep one, or their mean")
    return matrix, _as_array(ids[0]), _as_array(ids[1])


def _triples(source: Any) -> Iterator[Any]:
    if not hasattr(source, "columns"):
        yield from source
        return
    if len(source.columns) < 3:
        raise TypeError(f"a DataFrame of row id, column id, value is needed, got columns {list(source.columns)}")
    yield from zip(*(_plain(source[name]) for name in source.columns[:3]), strict=True)


def _plain(column: Any) -> Iterable[Any]:
    """Return the values of a DataFrame's column as Python's own."""
    return column.tolist() if hasattr(column, "tolist") else column.to_list()


def _first_repeat(rows: NDArray[np.int32], columns: NDArray[np.int32]) -> int:
    order = np.lexsort((columns, rows))  # stable: of equal pairs the earlier comes first
    again = (np.diff(rows[order]) == 0) & (np.diff(columns[order]) == 0)
    return int(order[1:][again].min())


def _as_array(ids: Iterable[Hashable]) -> NDArray[Any]:
    """Return whole numbers or texts as such an array, other ids as objects (a tuple stays one id)."""
    held = list(ids)
    if held and all(type(one) is int for one in held):
        return np.array(held)
    out = np.empty(len(held), object)
    out[:] = held
    return out
