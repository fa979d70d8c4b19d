"""IDX files, the form of the MNIST family: a big-endian header, then bytes."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowdyn.data.checks import Arrays, DataError, check_labels, fill, reading


def read_idx(path: Path, item_shape: tuple[int, ...], most: int) -> NDArray[np.uint8]:
    """Return the bytes (n, *item_shape) of an IDX file, gzipped if its name ends in .gz; 1 ≤ n ≤ ``most``.

    The header is two zero bytes, the type (8 = unsigned byte), the number of dimensions and each size as a
    32-bit number. DataError for any other type or shape, or a length that is not the header's.
    """
    ndim = 1 + len(item_shape)
    with reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        header = stream.read(4 * (1 + ndim))
        if len(header) < 4 * (1 + ndim):
            raise DataError(f"{path}: {len(header)} bytes, too short for an IDX header of {4 * (1 + ndim)}")
        magic, *shape = struct.unpack(f">{1 + ndim}I", header)
        if magic != 0x800 + ndim:
            raise DataError(f"{path}: magic number {magic:#010x}, needed {0x800 + ndim:#010x}")
        if tuple(shape[1:]) != item_shape or not 1 <= shape[0] <= most:
            needed = ", ".join(map(str, ("n", *item_shape)))
            raise DataError(f"{path}: shape {tuple(shape)}, needed ({needed}) with n from 1 to {most}")
        values = np.empty(shape, np.uint8)
        fill(values, stream, str(path))
    return values


def read_pair(paths: Sequence[Path], *, shape: tuple[int, int], most: int, num_classes: int) -> Arrays:
    """Return the images and labels of two IDX files, images first."""
    images_path, labels_path = paths
    labels = check_labels(read_idx(labels_path, (), most), num_classes, str(labels_path))
    images = read_idx(images_path, shape, most)
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path}")
    return images, labels
