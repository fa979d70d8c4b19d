"""Sets of images: what they hold, take, standardise and refuse; and the real ones, where they are there."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowdyn.data import IMAGE_SETS, ImageSet, available, load_images
from tests.image_files import examples, idx_bytes, some_images

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"

pytestmark = pytest.mark.usefixtures("no_data_folder")


# --- image sets ---------------------------------------------------------------------------------------------


def image_set(images: np.ndarray, labels: np.ndarray, **changes) -> ImageSet:
    values = {"class_names": tuple("0123456789"), "full_size": 50_000} | changes
    return ImageSet("some", "train", images, labels, **values)


def test_digits_are_embedded_and_split_in_file_order():
    from sklearn.datasets import load_digits

    train, test = load_images("digits"), load_images("digits", split="test")
    digits = load_digits()
    assert np.array_equal(np.concatenate([train.images, test.images]), digits.images)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), digits.target)
    assert (train.peak, train.images.max(), train.images.dtype, train.labels.dtype) == (16, 16, "u1", "i8")
    assert (train.used, test.used) == ("1 500 of 1 797 images", "297 of 1 797 images")
    assert available("digits")


def test_sha256_is_that_of_the_bytes_held():
    images, labels = some_images(20, 32, 32, 3)
    one = image_set(images, labels)
    assert one.sha256 == hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert image_set(np.asfortranarray(images), labels).sha256 == one.sha256
    assert image_set(images, labels[::-1].copy()).sha256 != one.sha256
    assert one.take(10).sha256 != one.sha256
    assert replace(one, name="other").sha256 == one.sha256


@examples
@given(hnp.arrays(np.int64, st.integers(10, 60), elements=st.integers(0, 3)), st.data())
def test_take_is_balanced_and_keeps_the_order(labels, data):
    n = data.draw(st.integers(4, len(labels)))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    part = image_set(images, labels, class_names=tuple("abcd")).take(n)
    position = part.images.ravel()
    assert len(part) == n
    assert (np.diff(position.astype(int)) > 0).all()
    assert np.array_equal(part.labels, labels[position])
    for label in range(4):
        held, taken = np.flatnonzero(labels == label), np.flatnonzero(part.labels == label)
        assert np.array_equal(position[taken], held[: len(taken)])  # the first of its class
        if len(taken) < len(held):
            assert len(taken) >= np.bincount(part.labels).max() - 1


def test_take_refuses_fewer_than_a_class_and_more_than_there_are():
    digits = load_images("digits")
    for n in (9, 1501):
        with pytest.raises(ValueError, match=f"{n} images asked of digits .train., needed 10 .* to 1500"):
            digits.take(n)
    assert digits.take(1500).sha256 == digits.sha256
    assert digits.take(1000).used == "1 000 of 1 797 images"


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-6)])
def test_features_are_standardised_pixels(shape, dtype, tolerance):
    train, test = (image_set(*some_images(30, *shape), peak=255) for _ in range(2))
    scaled = train.images.reshape(-1, *(shape[2:] or (1,))) / 255
    mean, deviation = scaled.mean(axis=0), scaled.std(axis=0)
    np.testing.assert_allclose(train.statistics, (mean, deviation), rtol=1e-12)
    for held in (train, test):
        features = held.features(dtype, statistics=train.statistics)
        expected = (held.images / 255 - mean) / deviation
        assert features.dtype == dtype
        np.testing.assert_allclose(features, expected.reshape(30, -1), atol=tolerance)
    assert np.array_equal(train.features(dtype), train.features(dtype, statistics=train.statistics))


def test_features_refuse_statistics_that_do_not_fit():
    colour = image_set(*some_images(10, 4, 4, 3))
    grey = image_set(*some_images(10, 4, 4))
    flat = replace(grey, images=np.full_like(grey.images, 7))
    for refuses in (
        lambda: colour.features(statistics=grey.statistics),
        lambda: grey.features(statistics=([0.0], [0.0])),
        lambda: grey.features(statistics=([0.0], [np.nan])),
        flat.features,
    ):
        with pytest.raises(ValueError, match="deviations above zero"):
            refuses()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((10, 4, 4))}, "float64 and int64, needed uint8 and int64"),
        ({"labels": np.zeros(10, np.int32)}, "uint8 and int32"),
        ({"images": np.zeros((10, 4, 4, 2), np.uint8)}, "needed .n, height, width. or"),
        ({"images": np.zeros((9, 4, 4), np.uint8)}, "one label an image"),
        ({"full_size": 9}, "at most full_size = 9"),
        ({"labels": np.arange(1, 11)}, "labels from 1 to 10 .* needed labels from 0 to 9"),
        ({"images": np.full((10, 4, 4), 17, np.uint8), "peak": 16}, "pixels up to 17, .* peak = 16"),
    ],
)
def test_image_sets_refuse_what_does_not_fit(changes, message):
    good = {"images": np.zeros((10, 4, 4), np.uint8), "labels": np.arange(10)}
    image_set(**good)
    with pytest.raises(ValueError, match=message):
        image_set(**(good | changes))


# --- the real sets ------------------------------------------------------------------------------------------

PER_CLASS = {
    ("mnist", "train"): [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ("fashion_mnist", "train"): [6000] * 10,
    ("fashion_mnist", "test"): [1000] * 10,
}
# Of the uncompressed IDX files as published: images, labels.
PUBLISHED_MD5 = {
    ("mnist", "train"): ["6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"],
    ("mnist", "test"): ["2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"],
    ("fashion_mnist", "train"): ["f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"],
    ("fashion_mnist", "test"): ["8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"],
}


@pytest.fixture(scope="module")
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"the real data sets are not in {REAL}")
    return REAL


@pytest.fixture(scope="module")
def real_cifar10(real) -> ImageSet:
    return load_images("cifar10", real)


@pytest.mark.parametrize(("name", "split"), PER_CLASS)
def test_real_mnist_family(real, name, split):
    held = load_images(name, real, split)
    assert np.bincount(held.labels).tolist() == PER_CLASS[name, split]
    assert len(held) == held.full_size == sum(PER_CLASS[name, split])
    parts = (held.images, held.labels.astype(np.uint8))
    assert [hashlib.md5(idx_bytes(part)).hexdigest() for part in parts] == PUBLISHED_MD5[name, split]


def test_real_cifar10(real, real_cifar10):
    assert real_cifar10.images.shape == (20_000, 32, 32, 3)
    assert real_cifar10.used == "20 000 of 50 000 images"
    assert np.bincount(real_cifar10.labels).tolist() == [2000] * 10
    # The means and deviations usually quoted for the 50 000; a sample of 20 000 comes near.
    mean, deviation = real_cifar10.statistics
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(deviation, [0.2470, 0.2435, 0.2616], atol=2e-3)
    part = real_cifar10.take(1000)
    assert np.bincount(part.labels).tolist() == [100] * 10
    features = part.features(statistics=real_cifar10.statistics)
    assert features.shape == (1000, 3072)
    assert abs(features.mean()) < 0.05
    assert all(available(name, real) for name in IMAGE_SETS)


def test_real_cifar10_test_split(real):
    test = load_images("cifar10", real, split="test")
    assert test.used == "5 000 of 10 000 images"
    assert np.bincount(test.labels).tolist() == [500] * 10
