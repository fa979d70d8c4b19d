"""CIFAR-10 and CIFAR-100: official binary batches, archived or extracted, and .npz subsets; nothing is unpickled."""

from __future__ import annotations

import math
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lowdyn.data.checks import Arrays, DataError, Stream, check_labels, fill, reading

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm "
)
FINE_NAMES = tuple(_FINE.split())
BATCH_SIZE = 10_000  # images in an official batch of CIFAR-10: 30 730 000 bytes
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6))
TEST = (f"{FOLDER}/test_batch.bin",)

_SHAPE = (32, 32, 3)


@dataclass(frozen=True)
class Official:
    """An official archive: its ``batches`` (of so many times BATCH_SIZE images), its other members, its records.

    A record is ``label_bytes``, of which the last is the class, and the image.
    """

    folder: str
    batches: Mapping[str, int]
    others: tuple[str, ...]
    class_names: tuple[str, ...] = CLASS_NAMES
    label_bytes: int = 1

    def batch_bytes(self, member: str) -> int:
        """Return how long the batch ``member`` is."""
        return self.batches[member] * BATCH_SIZE * (self.label_bytes + math.prod(_SHAPE))


CIFAR10 = Official(FOLDER, dict.fromkeys((*TRAIN, *TEST), 1), ("batches.meta.txt", "readme.html"))
CIFAR100 = Official(
    "cifar-100-binary",
    {"cifar-100-binary/train.bin": 5, "cifar-100-binary/test.bin": 1},
    ("coarse_label_names.txt", "fine_label_names.txt"),
    FINE_NAMES,
    label_bytes=2,  # the coarse class of twenty, then the fine one
)


def read_batches(paths: Sequence[Path], *, official: Official = CIFAR10) -> Arrays:
    """Return the images and labels of extracted official batches, in the order of ``paths``."""
    batches = []
    for path in paths:
        with reading(path), path.open("rb") as stream:
            batches.append(_read_batch(stream, str(path), official, f"{official.folder}/{path.name}"))
    return _joined(batches)


def read_archive(paths: Sequence[Path], *, members: Sequence[str], official: Official = CIFAR10) -> Arrays:
    """Return the images and labels of the batches ``members`` of the official archive, read in place.

    Nothing is extracted, so no name in the archive can reach the disk; DataError for a member that the
    official archive does not have, that is not an ordinary file, or is not as long as a batch must be.
    """
    (path,) = paths
    batches: dict[str, Arrays] = {}
    known = (*official.batches, official.folder, *(f"{official.folder}/{name}" for name in official.others))
    longest = max(map(official.batch_bytes, official.batches))
    with reading(path), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = f"{path}: member {member.name!r}"
            if member.name not in known or member.name in batches:
                raise DataError(f"{name} is not one of the official archive's; download the archive again")
            most = official.batch_bytes(member.name) if member.name in official.batches else longest
            if member.size > most:
                raise DataError(f"{name} has {member.size} bytes, a batch {most}")
            if member.name in members:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise DataError(f"{name} is not an ordinary file; download the archive again")
                batches[member.name] = _read_batch(stream, name, official, member.name)
            if len(batches) == len(members):
                break
        else:
            absent = ", ".join(member for member in members if member not in batches)
            raise DataError(f"{path}: holds no {absent}; download the archive again")
    return _joined([batches[member] for member in members])


def read_subsets(paths: Sequence[Path], *, most: int, class_names: tuple[str, ...] = CLASS_NAMES) -> Arrays:
    """Return the images and labels of .npz files, joined: at most ``most`` images.

    Each holds ``images`` (n, 32, 32, 3) uint8, ``labels`` (n,) int64 and ``class_names``, the official ones.
    """
    # The members may be LZMA-compressed, which takes seconds a file and lets other threads run.
    with ThreadPoolExecutor() as pool:
        images, labels = _joined(list(pool.map(lambda path: _read_subset(path, most, class_names), paths)))
    if len(images) > most:
        raise DataError(f"{paths[0]} and its fellow parts: {len(images)} images, needed at most {most}")
    return images, labels


def _read_batch(stream: Stream, name: str, official: Official, member: str) -> Arrays:
    """A record is the label, then the red, the green and the blue plane, each row by row."""
    first = official.label_bytes
    records = np.empty((official.batches[member] * BATCH_SIZE, first + math.prod(_SHAPE)), np.uint8)
    fill(records, stream, name)
    height, width, channels = _SHAPE
    planes = records[:, first:].reshape(-1, channels, height, width)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, check_labels(records[:, first - 1], len(official.class_names), name)


def _read_subset(path: Path, most: int, class_names: tuple[str, ...]) -> Arrays:
    with reading(path), zipfile.ZipFile(path) as archive:
        length = max(map(len, class_names))
        names = _read_member(archive, "class_names", f"<U{length}", (), len(class_names))
        if tuple(names) != class_names:
            raise DataError(f"{path}: class_names are {names.tolist()}, needed {list(class_names)}")
        labels = check_labels(_read_member(archive, "labels", "<i8", (), most), len(class_names), str(path))
        images = _read_member(archive, "images", "|u1", _SHAPE, most)
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(labels)} labels for {len(images)} images")
    return images, labels


def _read_member(
    archive: zipfile.ZipFile, key: str, dtype: str, item_shape: tuple[int, ...], most: int
) -> NDArray[Any]:
    """Like ``numpy.load(path)[key]``, but the type and shape are checked before anything is allocated."""
    if f"{key}.npy" not in archive.namelist():
        raise DataError(f"{archive.filename}: holds no {key!r}; needed images, labels and class_names")
    name = f"{archive.filename}: {key!r}"
    with archive.open(f"{key}.npy") as stream:
        version = npy.read_magic(stream)
        if version > (2, 0):
            raise DataError(f"{name} has npy version {version}, needed 1.0 or 2.0")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, columns_first, found = read_header(stream)
        if found != np.dtype(dtype) or shape[1:] != item_shape or not (shape and 1 <= shape[0] <= most):
            needed = f"{np.dtype(dtype)} ({', '.join(map(str, ('n', *item_shape)))}) with n from 1 to {most}"
            raise DataError(f"{name} is {found} {shape}, needed {needed}")
        values = np.empty(shape[::-1] if columns_first else shape, found)
        fill(values, stream, name)
    return values.T if columns_first else values


def _joined(parts: Sequence[Arrays]) -> Arrays:
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
