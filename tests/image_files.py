"""Small sets of images, and the files that hold them: IDX, and CIFAR's batches, archives and subsets."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from lowdyn.data import DataError, DataMissing, available, cifar, load_images

rng = np.random.default_rng(0)
examples = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def some_images(n: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.permutation(np.arange(n) % 10)


def write_mnist(place: Path, images: np.ndarray, labels: np.ndarray, prefix="train", suffix=".gz") -> None:
    write(place / f"{prefix}-images-idx3-ubyte{suffix}", idx_bytes(images))
    write(place / f"{prefix}-labels-idx1-ubyte{suffix}", idx_bytes(labels.astype(np.uint8)))


def refused(folder: Path, *words: str, name="mnist", split="train") -> str:
    with pytest.raises(DataError) as caught:
        load_images(name, folder, split)
    message = str(caught.value)
    assert not isinstance(caught.value, DataMissing)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


IMAGES, LABELS = some_images(20, 28, 28)

BATCHES = (*cifar.TRAIN, *cifar.TEST)
COLOURS, COLOUR_LABELS = some_images(24, 32, 32, 3)


def batch_bytes(number: int) -> bytes:
    """Four images: record by record a label byte, then the red, the green and the blue plane."""
    part = slice(4 * number, 4 * number + 4)
    planes = COLOURS[part].transpose(0, 3, 1, 2).reshape(4, -1)
    return np.hstack([COLOUR_LABELS[part, None].astype(np.uint8), planes]).tobytes()


def write_batches(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    for number, member in enumerate(BATCHES):
        write(folder / member, batch_bytes(number))


def write_archive(path: Path, members: dict[str, bytes | str | None]) -> Path:
    """A tar of the members: bytes are a file, a text is a link to it, None a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
                member.linkname = content or ""
                archive.addfile(member)
    return path


OFFICIAL = {
    cifar.FOLDER: None,
    f"{cifar.FOLDER}/readme.html": b"<p>",
    f"{cifar.FOLDER}/batches.meta.txt": b"airplane",
    **{member: batch_bytes(number) for number, member in enumerate(BATCHES)},
}


def assert_official(folder: Path) -> None:
    train, test = load_images("cifar10", folder), load_images("cifar10", folder, split="test")
    assert available("cifar10", folder)
    assert np.array_equal(np.concatenate([train.images, test.images]), COLOURS)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), COLOUR_LABELS)
    assert train.images.flags.c_contiguous
    assert (train.full_size, test.full_size) == (50_000, 10_000)
    assert train.class_names[:2] == ("airplane", "automobile")


def subset(part: slice = slice(0, 20)) -> dict[str, np.ndarray]:
    names = np.array(cifar.CLASS_NAMES)
    return {"images": COLOURS[part], "labels": COLOUR_LABELS[part], "class_names": names}


def write_subset(path: Path, arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            archive.writestr(f"{key}.npy", member.getvalue())
    return path
