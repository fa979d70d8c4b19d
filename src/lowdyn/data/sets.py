"""Every data set by one name, ``"mnist/test"``: what an experiment asks for and a runner looks up."""

from __future__ import annotations

import os
from typing import TypeAlias

from lowdyn.data.images import ImageSet
from lowdyn.data.pretrained import NAME as VIT
from lowdyn.data.pretrained import PretrainedViT, load_pretrained, pretrained_available
from lowdyn.data.ratings import RATING_SETS, RatingSet, load_ratings, ratings_available
from lowdyn.data.sentences import SentencePairs, load_sentence_pairs, sentence_pairs_available
from lowdyn.data.sources import available, load_images

DataSet: TypeAlias = ImageSet | RatingSet | SentencePairs | PretrainedViT
"""All have ``name``, ``used`` (how much is held, in words) and ``sha256``."""


def load_set(name: str, folder: str | os.PathLike[str] | None = None, download: bool = False) -> DataSet:
    """Load ``"data set/split"``, the split "train" (of ratings "all") by default; raises as that kind's loader does.

    >>> load_set("digits/test").used
    '297 of 1 797 images'
    """
    kind, _, split = name.partition("/")
    if kind == VIT:
        return load_pretrained(folder)
    if kind == "sts_benchmark":
        return load_sentence_pairs(kind, folder, split or "train")
    if kind in RATING_SETS:
        return load_ratings(kind, folder, split or "all", download=download)
    return load_images(kind, folder, split or "train", download=download)


def set_available(name: str, folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether the files of ``"data set/split"`` are there; none is opened.

    >>> set_available("digits/test")
    True
    """
    kind = name.partition("/")[0]
    if kind == VIT:
        return pretrained_available(folder)
    if kind in RATING_SETS:
        return ratings_available(folder)
    return sentence_pairs_available(folder) if kind == "sts_benchmark" else available(kind, folder)


def downloadable(name: str) -> bool:
    """Whether :func:`load_set` can fetch ``"data set/split"``; pretrained weights are put there by hand.

    >>> downloadable("cifar10"), downloadable("vit_b_16")
    (True, False)
    """
    return name != VIT
