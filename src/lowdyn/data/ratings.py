"""Ratings of films by users: MovieLens-100K.

Terms of the set (GroupLens, its README): research use, no redistribution without permission, no copy of it in anything
published; cite Harper and Konstan 2015, doi 10.1145/2827872.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowdyn.data.checks import DataError, DataMissing, reading
from lowdyn.data.download import download as fetch
from lowdyn.data.sources import check_choice, data_folder
from lowdyn.numerals import thousands

RATING_SETS = ("movielens_100k",)
SPLITS = ("all", *(f"u{fold}.{part}" for fold in range(1, 6) for part in ("base", "test")))
"""The whole set, and the five parts into training and test ratings that come with it, by the names of their files."""

USERS, FILMS, COUNT = 943, 1682, 100_000
_FOLDERS = ("ml-100k", "movielens_100k", ".")
_FILE, _ARCHIVE = "u.data", "ml-100k.zip"
_URL, _MD5 = "https://files.grouplens.org/datasets/movielens/", "0e33842e24a9c977be4e0107933c0723"
_LARGEST = 1 << 22  # bytes of u.data: twice its size


@dataclass(frozen=True, eq=False)
class RatingSet:
    """Ratings of one split: ``rows`` (users), ``columns`` (films) and ``values``, (n,) each; indices start at 0.

    ``full_size`` is the number of ratings in the whole set; ``sha256``, over rows, columns and values, identifies
    what is held. ValueError for lengths that differ or an index outside ``shape``.

    >>> places = np.array([0, 0, 1], np.int32), np.array([0, 2, 1], np.int32)
    >>> ratings = RatingSet("mine", "all", *places, np.array([5.0, 3.0, 4.0]), shape=(2, 3), full_size=1000)
    >>> ratings.used, ratings.matrix().toarray().tolist()
    ('3 of 1 000 ratings', [[5.0, 0.0, 3.0], [0.0, 4.0, 0.0]])
    """

    name: str
    split: str
    rows: NDArray[np.int32] = field(repr=False)
    columns: NDArray[np.int32] = field(repr=False)
    values: NDArray[np.float64] = field(repr=False)
    shape: tuple[int, int]
    full_size: int
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        places = (self.rows, self.columns)
        if not len(self.rows) == len(self.columns) == len(self.values) > 0:
            raise ValueError(
                f"{len(self.rows)} rows, {len(self.columns)} columns, {len(self.values)} values: needed as many of each"
            )
        if any(one.min() < 0 or one.max() >= size for one, size in zip(places, self.shape, strict=True)):
            raise ValueError(
                f"indices up to {[int(one.max()) for one in places]}, needed 0 and more, below {self.shape}"
            )
        digest = hashlib.sha256()
        for array, kind in ((self.rows, "<i4"), (self.columns, "<i4"), (self.values, "<f8")):
            digest.update(np.ascontiguousarray(array, kind).tobytes())
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.values)

    @property
    def used(self) -> str:
        """How much of the whole set is held, in words: ``"20 000 of 100 000 ratings"``."""
        return f"{thousands(len(self))} of {thousands(self.full_size)} ratings"

    def fold(self, number: int) -> tuple[RatingSet, RatingSet]:
        """Return training and test ratings of fold 1 … 5: the test part is the ``number``-th fifth, in order.

        Of MovieLens-100K these are u1 … u5, its own five parts. ValueError for another number, or for a part.
        """
        if number not in range(1, 6):
            raise ValueError(f"number must be 1 to 5, got {number!r}")
        if len(self) != self.full_size:
            raise ValueError(f"folds are of the whole set, this is {self.used}")
        inside = np.zeros(len(self), bool)
        inside[(number - 1) * len(self) // 5 : number * len(self) // 5] = True
        return self.select(~inside, f"u{number}.base"), self.select(inside, f"u{number}.test")

    def busiest(self, users: int, films: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the indices (users,) and (films,), ascending, of those that have most ratings here."""
        counts = (
            np.bincount(side, minlength=size) for side, size in zip((self.rows, self.columns), self.shape, strict=True)
        )
        picked = (np.argsort(-one, kind="stable")[:size] for one, size in zip(counts, (users, films), strict=True))
        rows, columns = (np.sort(one) for one in picked)
        return rows, columns

    def among(self, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> RatingSet:
        """Return the ratings at these ``rows`` and ``columns`` (indices, ascending), both numbered anew from 0."""
        places = []
        for side, kept, size in zip((self.rows, self.columns), (rows, columns), self.shape, strict=True):
            place = np.full(size, -1, np.int32)
            place[kept] = np.arange(len(kept), dtype=np.int32)
            places.append(place[side])
        inside = (places[0] >= 0) & (places[1] >= 0)
        at = [place[inside] for place in places]
        return replace(self, rows=at[0], columns=at[1], values=self.values[inside], shape=(len(rows), len(columns)))

    def select(self, chosen: NDArray[np.bool_], split: str) -> RatingSet:
        """Return the ratings that ``chosen`` (n,) marks, under the name ``split``."""
        parts = {name: getattr(self, name)[chosen] for name in ("rows", "columns", "values")}
        return replace(self, split=split, **parts)

    def matrix(self) -> Any:
        """Return the ratings as a SciPy CSR array of ``shape``, what is not rated not stored."""
        from scipy import sparse  # slow to import

        return sparse.coo_array((self.values, (self.rows, self.columns)), shape=self.shape).tocsr()


def load_ratings(
    name: str = "movielens_100k",
    folder: str | os.PathLike[str] | None = None,
    split: str = "all",
    download: bool = False,
) -> RatingSet:
    """Load MovieLens-100K: 100 000 ratings from 1 to 5 by 943 users of 1682 films; ``split`` is one of ``SPLITS``.

    It is read from ``ml-100k/u.data`` in ``folder`` (default: the environment variable LOWDYN_DATA), unpacked or in
    the official ``ml-100k.zip``. The parts u1 … u5 are those of the set's own recipe: the test part of fold i is the
    i-th fifth of that file's lines, whatever other files are there. With ``download`` the archive is fetched first,
    and must have the published MD5.

    ValueError for an unknown name or split, DataMissing if the set is not there, DataError if it is damaged or another.
    """
    check_choice("name", name, RATING_SETS)
    check_choice("split", split, SPLITS)
    root = data_folder(folder)
    place = None if root is None else _find(root)
    if place is None and download and root is not None:
        fetch(_URL, {_ARCHIVE: _MD5}, root / _FOLDERS[0])
        place = _find(root)
    if place is None:
        where = "no data folder; pass folder= (on the command line --data-dir) or set LOWDYN_DATA, and put"
        where = where if root is None else f"no {_FILE} or {_ARCHIVE} in {root / _FOLDERS[0]}; put"
        raise DataMissing(
            f"{name} ({split}): {where} {_FOLDERS[0]}/{_FILE} of {_URL}{_ARCHIVE} there, or load with download=True "
            "(research use, not to be redistributed)"
        )
    table = _read(place)
    rows, columns = (table[:, side].astype(np.int32) - 1 for side in (0, 1))
    whole = RatingSet(name, "all", rows, columns, table[:, 2].astype(np.float64), (USERS, FILMS), COUNT)
    if split == "all":
        return whole
    return whole.fold(int(split[1]))[split.endswith("test")]


def ratings_available(folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether the file or the archive of MovieLens-100K is there; neither is opened.

    >>> ratings_available("nowhere")
    False
    """
    root = data_folder(folder)
    return root is not None and _find(root) is not None


def _find(root: Path) -> Path | None:
    places = (root / folder / file for file in (_FILE, _ARCHIVE) for folder in _FOLDERS)
    return next((place for place in places if place.is_file()), None)


def _read(path: Path) -> NDArray[np.int64]:
    """Return user, film, rating, time (100 000, 4) of u.data, checked."""
    with reading(path):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(f"{_FOLDERS[0]}/{_FILE}") as member:
                content = member.read(_LARGEST)
        else:
            with path.open("rb") as file:
                content = file.read(_LARGEST)
        table = np.loadtxt(io.BytesIO(content), dtype=np.int64, delimiter="\t", ndmin=2)
    if table.shape != (COUNT, 4):
        raise DataError(f"{path}: found a table of {table.shape}, needed {(COUNT, 4)}; fetch the file again")
    for name, column, most in (("users", 0, USERS), ("films", 1, FILMS), ("ratings", 2, 5)):
        low, high = table[:, column].min(), table[:, column].max()
        if low < 1 or high > most:
            raise DataError(f"{path}: {name} from {low} to {high}, needed 1 to {most}; fetch the file again")
    if len(np.unique(table[:, 0] * (FILMS + 1) + table[:, 1])) < COUNT:
        raise DataError(f"{path}: a film is rated twice by one user; fetch the file again")
    return table
