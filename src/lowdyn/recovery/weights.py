"""The weights of observations: for rows or for entries, checked once, and what they leave of the entries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lowdyn.recovery.observations import Observations


def weighted(seen: Observations, sample_weight: Any) -> Observations:
    """Return ``seen`` with weights; entries of weight 0 are left out, and weights that are all 1 are none.

    ``sample_weight`` holds one for every row (rows,), or is a matrix of the shape of ``seen`` that holds one for every
    entry: SciPy sparse and stored at the same places, or dense, where what it holds elsewhere is not looked at.

    TypeError for what holds no numbers; ValueError for other shapes and places, for weights that are negative, NaN or
    infinite, for those above zero that the type of the values holds as infinity or zero, and where none is above zero.

    >>> seen = Observations.read(np.array([[1.0, np.nan], [2.0, 3.0]]))
    >>> weighted(seen, [0, 2]).values, weighted(seen, [0, 2]).weights
    (array([2., 3.]), array([2., 2.]))
    """
    given = _of_sparse(seen, sample_weight) if sparse.issparse(sample_weight) else _of_array(seen, sample_weight)
    _check(seen, given, np.isfinite(given) & (given >= 0), "must be finite and at least 0")
    left = given > 0
    if not left.any():
        raise ValueError("sample_weight is zero for every entry; at least one needs a weight above 0")
    dtype = seen.values.dtype
    with np.errstate(over="ignore", under="ignore"):  # refused below
        weights = given.astype(dtype)
    held = np.isfinite(weights) & (weights > 0) | ~left
    _check(seen, given, held, f"must be within the range of {dtype}, the type of X (float64 has more)")
    seen, weights = seen.select(left), weights[left]
    return seen if (weights == 1).all() else replace(seen, weights=weights)


def _check(seen: Observations, given: NDArray[Any], held: NDArray[np.bool_], needed: str) -> None:
    """ValueError naming the first of the weights (entries,) that is not as ``needed``."""
    refused = np.flatnonzero(~held)
    if refused.size:
        place = _place(seen, _keys(seen)[refused[0]])
        raise ValueError(f"sample_weight {needed}, got {given[refused[0]]} for the entry at {place}")


def _of_array(seen: Observations, sample_weight: Any) -> NDArray[Any]:
    """Return the weights of the entries (entries,) from those of rows or from a dense matrix."""
    array = np.asarray(sample_weight)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight must be real numbers, got {array.dtype}")
    if array.shape == seen.shape[:1]:
        return array[seen.rows]
    if array.shape == seen.shape:
        return array[seen.rows, seen.columns]
    raise ValueError(
        f"sample_weight has shape {array.shape}; needed is a weight for each of the {seen.shape[0]} rows, or a matrix "
        f"of shape {seen.shape} with one for each entry"
    )


def _of_sparse(seen: Observations, sample_weight: Any) -> NDArray[Any]:
    """Return the weights of the entries (entries,) from a sparse matrix that is stored at their places."""
    try:
        given = Observations.read(sample_weight)
    except (TypeError, ValueError) as error:
        raise type(error)(f"sample_weight: {error}") from error
    if given.shape != seen.shape:
        raise ValueError(f"sample_weight has shape {given.shape}, needed that of X, {seen.shape}")
    missing, extra = (
        np.setdiff1d(_keys(one), _keys(other), assume_unique=True) for one, other in ((seen, given), (given, seen))
    )
    if missing.size:
        raise ValueError(f"sample_weight stores no weight for the entry of X at {_place(seen, missing[0])}")
    if extra.size:
        raise ValueError(f"sample_weight stores a weight where X has no entry, at {_place(seen, extra[0])}")
    return given.values


def _keys(entries: Observations) -> NDArray[np.int64]:
    return entries.rows.astype(np.int64) * entries.shape[1] + entries.columns


def _place(entries: Observations, key: np.int64) -> str:
    row, column = divmod(int(key), entries.shape[1])
    return f"row {row}, column {column}"
