"""IDX files of images and labels: read as written, refused by name when damaged."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowdyn.data import DataError
from lowdyn.data.idx import read_idx
from tests.image_files import IMAGES, LABELS, examples, idx_bytes, refused, write, write_mnist

pytestmark = pytest.mark.usefixtures("no_data_folder")


@examples
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)), zipped=st.booleans())
def test_idx_round_trip(tmp_path_factory, array, zipped):
    path = write(tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a"), idx_bytes(array))
    assert np.array_equal(read_idx(path, array.shape[1:], most=6), array)


GOOD = idx_bytes(IMAGES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["0 bytes, too short for an IDX header of 16"]),
        (GOOD[:15], ["15 bytes, too short"]),
        (b"\0\0\x08\1" + GOOD[4:], ["magic number 0x00000801, needed 0x00000803"]),
        (b"\0\0\x0d\3" + GOOD[4:], ["magic number 0x00000d03"]),
        (b"\3\x08\0\0" + GOOD[4:], ["magic number 0x03080000"]),
        (GOOD[:-1], ["only 15679, needed 15680 bytes"]),
        (GOOD + b"\0", ["found more, needed 15680 bytes"]),
        (idx_bytes(IMAGES[:, :27]), ["shape (20, 27, 28), needed (n, 28, 28)"]),
        (idx_bytes(IMAGES[:0]), ["shape (0, 28, 28)", "n from 1 to 60000"]),
        (struct.pack(">4I", 0x803, 2**32 - 1, 28, 28), ["shape (4294967295, 28, 28)", "1 to 60000"]),
        (idx_bytes(IMAGES[:19]), ["20 labels for the 19 images"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wrong_idx_images_are_refused_by_name(tmp_path, content, words, suffix):
    write_mnist(tmp_path / "mnist", IMAGES, LABELS, suffix=suffix)
    write(tmp_path / "mnist" / f"train-images-idx3-ubyte{suffix}", content)
    refused(tmp_path, f"train-images-idx3-ubyte{suffix}", *words)


def test_labels_out_of_range_are_refused_by_name(tmp_path):
    write_mnist(tmp_path / "mnist", IMAGES, LABELS + 1)
    refused(tmp_path, "train-labels-idx1-ubyte.gz", "labels from 1 to 10, needed 0 to 9")


@pytest.mark.parametrize(
    "damage",
    [
        lambda z: z[: len(z) // 2],
        lambda z: z[:-8],
        lambda z: z[:-8] + b"\1" * 8,
        lambda z: z[:5000] + bytes(40) + z[5040:],
        lambda z: b"no gzip at all, but long enough",
        lambda z: z + b"rest",
    ],
    ids=["half", "no checksum", "wrong checksum", "zeros inside", "another file", "trailing bytes"],
)
def test_damaged_gzip_is_refused_by_name(tmp_path, damage):
    write_mnist(tmp_path / "mnist", IMAGES, LABELS)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, str(path), "fetch the file again")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx_bytes(IMAGES[:2, :5, :5]))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=path.name):
            read_idx(path, (5, 5), most=2)


def test_a_gzip_bomb_is_not_unfolded(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist", IMAGES, LABELS)
    write(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", GOOD + bytes(2**26))
    unfolded = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda *args: unfolded.append(read(*args)) or unfolded[-1])
    refused(tmp_path, "found more, needed 15680")
    assert sum(map(len, unfolded)) <= len(GOOD) + 1 + 8 + len(LABELS)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    write_mnist(tmp_path / "mnist", IMAGES, LABELS)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    path.mkdir()
    refused(tmp_path, str(path), "cannot be read (IsADirectoryError")
