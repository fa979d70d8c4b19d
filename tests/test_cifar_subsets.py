"""Subsets of CIFAR-10 in NumPy's archives: joined, refused by name, never unpickled."""

import contextlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lowdyn.data import DataError, available, cifar, load_images
from tests.image_files import (
    COLOUR_LABELS,
    COLOURS,
    OFFICIAL,
    assert_official,
    refused,
    subset,
    write_archive,
    write_subset,
)

pytestmark = pytest.mark.usefixtures("no_data_folder")

PART_1 = Path("cifar10", "cifar10-train-subset-part1.npz")
PART_2 = Path("cifar10", "cifar10-train-subset-part2.npz")


def test_cifar10_subsets_are_joined_in_order(tmp_path, monkeypatch):
    write_subset(tmp_path / PART_1, subset(slice(0, 10)), zipfile.ZIP_LZMA)
    alone = load_images("cifar10", tmp_path)
    assert np.array_equal(alone.images, COLOURS[:10])
    assert not available("cifar10", tmp_path)
    np.savez(tmp_path / PART_2, **subset(slice(10, 20)))
    np.savez_compressed(tmp_path / "cifar10" / "cifar10-test-subset.npz", **subset(slice(20, 24)))
    both, test = load_images("cifar10", tmp_path), load_images("cifar10", tmp_path, split="test")
    assert available("cifar10", tmp_path)
    assert np.array_equal(np.concatenate([both.images, test.images]), COLOURS)
    assert np.array_equal(np.concatenate([both.labels, test.labels]), COLOUR_LABELS)
    assert (alone.used, both.used) == ("10 of 50 000 images", "20 of 50 000 images")
    columns_first = {key: np.asfortranarray(array) for key, array in subset(slice(10, 20)).items()}
    write_subset(tmp_path / PART_2, columns_first)
    assert load_images("cifar10", tmp_path).sha256 == both.sha256
    write_archive(tmp_path / "cifar-10-binary.tar.gz", OFFICIAL)
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    assert_official(tmp_path)  # the whole set goes before its subset


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": COLOURS[:20].astype(np.int16)}, ["'images' is int16 (20, 32, 32, 3), needed uint8"]),
        ({"images": COLOURS[:20, :31]}, ["(20, 31, 32, 3), needed uint8 (n, 32, 32, 3)"]),
        ({"images": np.uint8(3)}, ["'images' is uint8 ()"]),
        ({"images": COLOURS[:0]}, ["with n from 1 to 50000"]),
        ({"images": COLOURS[:19]}, ["20 labels for 19 images"]),
        ({"images": None}, ["holds no 'images'"]),
        ({"labels": None}, ["holds no 'labels'"]),
        ({"class_names": None}, ["holds no 'class_names'"]),
        ({"labels": COLOUR_LABELS[:20].astype(float)}, ["'labels' is float64 (20,), needed int64 (n)"]),
        ({"labels": COLOUR_LABELS[:20] - 1}, ["labels from -1 to 8, needed 0 to 9"]),
        ({"class_names": np.array(cifar.CLASS_NAMES)[::-1]}, ["class_names are ['truck'"]),
    ],
)
def test_wrong_subsets_are_refused_by_name(tmp_path, changes, words):
    arrays = {key: array for key, array in (subset() | changes).items() if array is not None}
    write_subset(tmp_path / PART_1, arrays)
    refused(tmp_path, str(tmp_path / PART_1), *words, name="cifar10")


def test_more_than_the_official_number_of_images_is_refused(tmp_path):
    paths = [write_subset(tmp_path / part, subset(slice(0, 10))) for part in (PART_1, PART_2)]
    with pytest.raises(DataError, match=r"20 images, needed at most 15"):
        cifar.read_subsets(paths, most=15)


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("key", ["images", "labels", "class_names"])
def test_nothing_is_unpickled(tmp_path, key):
    path = tmp_path / PART_1
    write_subset(path, subset() | {key: np.array([Trap()] * 20, object)})
    refused(tmp_path, str(path), f"'{key}' is object", name="cifar10")
    path.write_bytes(pickle.dumps(Trap()))
    refused(tmp_path, str(path), "BadZipFile", name="cifar10")
    assert not Trap.sprung
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.sprung  # the trap works
    Trap.sprung = False


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # numpy guesses that a damaged header is from Python 2
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
def test_any_damage_to_a_subset_is_noticed_or_harmless(tmp_path, compression):
    path = write_subset(tmp_path / PART_1, subset(slice(0, 2)), compression)
    whole = path.read_bytes()
    sound = load_images("cifar10", tmp_path).sha256
    for cut in range(0, len(whole), 211):
        path.write_bytes(whole[:cut])
        refused(tmp_path, str(path), name="cifar10")
    changes = np.random.default_rng(1)
    for position in (*range(0, 300, 5), *changes.integers(0, len(whole), 60), *range(-300, 0, 5)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << changes.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            assert load_images("cifar10", tmp_path).sha256 == sound
