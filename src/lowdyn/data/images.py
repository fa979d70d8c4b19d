"""Images with labels as arrays, and what a network is fed from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lowdyn.numerals import thousands

Statistics: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and standard deviation of each channel, in units of the brightest pixel."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels of one split of a data set, or of a part of it.

    ``images`` is (n, height, width) or (n, height, width, 3) uint8, from 0 to ``peak``; ``labels`` (n,) int64
    counts into ``class_names``. ``full_size`` is the number of images in the official split. ``sha256``, over
    the bytes of the images, then of the labels (little-endian), identifies the data held, whatever file
    they came from. ValueError for arrays of another shape, type or range.

    >>> from lowdyn.data import load_images
    >>> train, test = load_images("digits", split="train"), load_images("digits", split="test")
    >>> train.images.shape, train.num_classes, train.used
    ((1500, 8, 8), 10, '1 500 of 1 797 images')
    >>> test.features(statistics=train.statistics).shape
    (297, 64)
    """

    name: str
    split: str
    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]
    full_size: int
    peak: int = 255
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        shape, pixel, label = self.images.shape, self.images.dtype, self.labels.dtype
        if pixel != np.dtype(np.uint8) or label != np.dtype(np.int64):
            raise ValueError(f"images and labels are {pixel} and {label}, needed uint8 and int64")
        if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or 0 in shape:
            raise ValueError(f"images have shape {shape}, needed (n, height, width) or (n, height, width, 3)")
        if self.labels.shape != shape[:1] or len(self) > self.full_size:
            raise ValueError(
                f"{shape[0]} images with labels of shape {self.labels.shape}: one label an image is needed, "
                f"and at most full_size = {self.full_size} of them"
            )
        low, high, brightest = int(self.labels.min()), int(self.labels.max()), int(self.images.max())
        if low < 0 or high >= self.num_classes or brightest > self.peak:
            raise ValueError(
                f"labels from {low} to {high} and pixels up to {brightest}, needed labels from 0 to "
                f"{self.num_classes - 1} and pixels up to peak = {self.peak}"
            )
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, "<i8").data)
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image included."""
        return len(self.class_names)

    @property
    def used(self) -> str:
        """How much of the official split is held, in words: ``"20 000 of 50 000 images"``."""
        return f"{thousands(len(self))} of {thousands(self.full_size)} images"

    def take(self, n: int) -> ImageSet:
        """Return the first ``n`` images, as many of each class as possible, in the order they have here.

        No class gets more than one image above another, unless the other has run out. ValueError unless
        ``num_classes`` ≤ ``n`` ≤ ``len(self)``.

        >>> from lowdyn.data import load_images
        >>> np.bincount(load_images("digits").take(100).labels)
        array([10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
        """
        if not self.num_classes <= n <= len(self):
            raise ValueError(
                f"{n} images asked of {self.name} ({self.split}), needed {self.num_classes} (one a class) "
                f"to {len(self)} (all that are held)"
            )
        by_class = np.argsort(self.labels, kind="stable")
        first_of_class = np.searchsorted(self.labels[by_class], self.labels[by_class])
        turn = np.empty(len(self), np.int64)  # how many images of its class come before an image
        turn[by_class] = np.arange(len(self)) - first_of_class
        chosen = np.sort(np.argsort(turn, kind="stable")[:n])
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    @property
    def _channels(self) -> int:
        return 3 if self.images.ndim == 4 else 1

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation (channels,) of the pixels held, in units of ``peak``."""
        # Sums of whole numbers are exact, and a square of a byte fits 16 bits: no float copy of the images.
        # Summing over images first, pixels second, is several times as fast as over both at once.
        rows = self.images.reshape(len(self), -1)
        sums = rows.sum(axis=0, dtype=np.int64)
        squares = np.square(rows, dtype=np.uint16).sum(axis=0, dtype=np.int64)
        count = rows.size // self._channels
        mean, mean_square = (s.reshape(-1, self._channels).sum(axis=0) / count for s in (sums, squares))
        return mean / self.peak, np.sqrt(mean_square - mean**2) / self.peak

    def features(
        self, dtype: DTypeLike = np.float32, statistics: tuple[ArrayLike, ArrayLike] | None = None
    ) -> NDArray[np.floating]:
        """Return the images as rows (n, pixels) of floating type: (pixel / peak - mean) / deviation.

        Mean and deviation are per channel, from ``statistics``: those of the images held unless given. Pass
        ``train.statistics`` for a test split, which must be scaled as the network was trained. A row runs
        through the image line by line, the channels of a pixel side by side. ValueError for a deviation of
        zero or statistics that do not fit the channels.
        """
        chosen = self.statistics if statistics is None else statistics
        mean, deviation = (np.asarray(values, np.float64) for values in chosen)
        if mean.shape != (self._channels,) or deviation.shape != mean.shape or not (deviation > 0).all():
            raise ValueError(
                f"statistics are mean {mean} and deviation {deviation}, needed {self._channels} of each with "
                "deviations above zero; pass statistics= of images that vary"
            )
        rows = self.images.reshape(len(self), -1).astype(dtype)
        positions = rows.shape[1] // self._channels
        rows /= self.peak
        rows -= np.tile(mean, positions).astype(dtype)
        rows /= np.tile(deviation, positions).astype(dtype)
        return rows
