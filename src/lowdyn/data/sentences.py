"""Pairs of sentences with a score of their similarity: the STS Benchmark."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowdyn.data.checks import DataError, DataMissing, reading
from lowdyn.data.sources import check_choice, data_folder
from lowdyn.numerals import thousands

FOLDER, URL = "stsbenchmark", "http://ixa2.si.ehu.eus/stswiki/images/4/48/Stsbenchmark.tar.gz"
SIZES = {"train": 5749, "dev": 1500, "test": 1379}
HIGHEST = 5.0


@dataclass(frozen=True, eq=False)
class SentencePairs:
    """Pairs of sentences of one split, or of a part of it.

    ``first`` and ``second`` hold n sentences each, ``scores`` (n,) float64 their similarity from 0 (nothing in common)
    to 5 (the same). ``full_size`` is the number of pairs in the official split; ``sha256``, over sentences and
    scores, identifies what is held. ValueError for lengths that differ and scores outside 0 … 5.

    >>> pairs = SentencePairs("mine", "all", ("A cat.", "A dog."), ("A kitten.", "A car."), np.array([4.5, 0.0]), 2)
    >>> pairs.take(np.array([1])).first, pairs.take(np.array([1])).used
    (('A dog.',), '1 of 2 pairs')
    """

    name: str
    split: str
    first: tuple[str, ...] = field(repr=False)
    second: tuple[str, ...] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    full_size: int
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.first),) or len(self.first) != len(self.second) or not self.first:
            raise ValueError(
                f"{len(self.first)} first and {len(self.second)} second sentences with scores of shape "
                f"{self.scores.shape}: one of each is needed, and at least one pair"
            )
        if not ((self.scores >= 0) & (self.scores <= HIGHEST)).all():  # NaN is refused too
            raise ValueError(f"scores from {self.scores.min()} to {self.scores.max()}, needed 0 to {HIGHEST:g}")
        text = "\0".join((*self.first, *self.second))
        digest = hashlib.sha256(text.encode("utf-8") + np.ascontiguousarray(self.scores, "<f8").tobytes())
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.first)

    @property
    def used(self) -> str:
        """How much of the official split is held, in words: ``"300 of 1 500 pairs"``."""
        return f"{thousands(len(self))} of {thousands(self.full_size)} pairs"

    def take(self, indices: NDArray[np.int64]) -> SentencePairs:
        """Return the pairs at ``indices``, in their order."""
        first, second = (tuple(one[i] for i in indices) for one in (self.first, self.second))
        return replace(self, first=first, second=second, scores=self.scores[indices])


def load_sentence_pairs(
    name: str = "sts_benchmark", folder: str | os.PathLike[str] | None = None, split: str = "train"
) -> SentencePairs:
    """Load the ``split`` ("train", "dev" or "test") of the STS Benchmark (Cer et al. 2017, arXiv 1708.00055).

    It is read from ``stsbenchmark/`` in ``folder`` (default: the environment variable LOWDYN_DATA), from the official
    files ``sts-train.csv``, ``sts-dev.csv``, ``sts-test.csv``: UTF-8, fields separated by tabs and never quoted,
    of which the fifth is the score and the next two are the sentences. ValueError for an unknown name or split,
    DataMissing if a file is not there, DataError if it is damaged or has not as many pairs as the official one.
    """
    check_choice("name", name, ("sts_benchmark",))
    check_choice("split", split, tuple(SIZES))
    root, file = data_folder(folder), f"sts-{split}.csv"
    if root is None:
        raise DataMissing(
            f"{name} ({split}): no data folder; pass folder= (on the command line --data-dir) or set LOWDYN_DATA, "
            f"and put {FOLDER}/{file} from {URL} there"
        )
    path = root / FOLDER / file
    if not path.is_file():
        raise DataMissing(f"{name} ({split}): no {file} in {path.parent}; get it from {URL}")
    with reading(path):
        lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    if len(lines) != SIZES[split]:
        raise DataError(f"{path}: found {len(lines)} lines, needed {SIZES[split]}; fetch the file again")
    first, second, scores = zip(*(_pair(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)), strict=True)
    return SentencePairs(name, split, first, second, np.array(scores), full_size=len(lines))


def _pair(line: str, place: str) -> tuple[str, str, float]:
    fields = line.removesuffix("\r").split("\t")
    if len(fields) < 7 or not fields[5] or not fields[6]:
        raise DataError(f"{place}: found {len(fields)} fields, needed 7 with a score and two sentences at the end")
    try:
        score = float(fields[4])
    except ValueError:
        score = float("nan")
    if not 0 <= score <= HIGHEST:
        raise DataError(f"{place}: found the score {fields[4]!r}, needed a number from 0 to {HIGHEST:g}")
    return fields[5], fields[6], score


def sentence_pairs_available(folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether the training and development files are there; none is opened."""
    root = data_folder(folder)
    return root is not None and all((Path(root) / FOLDER / f"sts-{split}.csv").is_file() for split in ("train", "dev"))
