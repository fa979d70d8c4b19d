import contextlib
import functools
import gc
import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowdyn.data import IMAGE_SETS, DataError, DataMissing, ImageSet, available, cifar, load_images, sources
from lowdyn.data.idx import read_idx

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"
rng = np.random.default_rng(0)
examples = settings(max_examples=50, deadline=None, derandomize=True, database=None)


pytestmark = pytest.mark.usefixtures("no_data_folder")


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


# --- finding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [load_images, available])
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match=r"name must be one of 'digits', .*, got 'minst'"):
        call("minst")
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', got 'valid'"):
        load_images("digits", split="valid")


def test_a_missing_set_is_one_line_with_folder_file_and_remedy(tmp_path):
    for name, file in {"mnist": "t10k-labels-idx1-ubyte.gz", "cifar10": "cifar-10-binary.tar.gz"}.items():
        assert not available(name)
        assert not available(name, tmp_path)
        for folder, place in {None: "LOWDYN_DATA", tmp_path: str(tmp_path / name)}.items():
            with pytest.raises(DataMissing) as caught:
                load_images(name, folder, split="test")
            message = str(caught.value)
            assert "\n" not in message
            assert all(part in message for part in (f"{name} (test)", place, file, "http", "download=True"))


def test_a_set_that_is_nearly_there_names_what_it_lacks(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist", *some_images(10, 28, 28))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataMissing, match=r"no train-labels-idx1-ubyte.gz in .*/train-labels-idx1-ubyte.gz or"):
        load_images("mnist", tmp_path)
    write_batches(tmp_path, monkeypatch)
    (tmp_path / cifar.TRAIN[3]).unlink()
    with pytest.raises(DataMissing, match=r"no cifar-10-batches-bin/data_batch_4.bin in "):
        load_images("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("mnist", place) for place in ("mnist", "MNIST/raw")),
        *(("fashion_mnist", place) for place in ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw")),
    ],
)
def test_mnist_family_in_every_folder_gzipped_or_not(tmp_path, monkeypatch, name, place):
    images, labels = some_images(20, 28, 28)
    write_mnist(tmp_path / place, images, labels, suffix="")
    assert not available(name, tmp_path)  # the test split is not there yet
    write_mnist(tmp_path / place, images[:12], labels[:12], prefix="t10k")
    assert available(name, tmp_path)
    monkeypatch.setenv("LOWDYN_DATA", str(tmp_path))
    assert available(name)
    train, test = load_images(name), load_images(name, split="test")
    assert np.array_equal(train.images, images)
    assert np.array_equal(train.labels, labels)
    assert np.array_equal(test.images, images[:12])
    assert (train.used, test.used) == ("20 of 60 000 images", "12 of 10 000 images")
    assert (train.name, train.split, train.num_classes, train.peak) == (name, "train", 10, 255)


# --- IDX ----------------------------------------------------------------------------------------------------


@examples
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)), zipped=st.booleans())
def test_idx_round_trip(tmp_path_factory, array, zipped):
    path = write(tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a"), idx_bytes(array))
    assert np.array_equal(read_idx(path, array.shape[1:], most=6), array)


IMAGES, LABELS = some_images(20, 28, 28)
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


# --- CIFAR-10 -----------------------------------------------------------------------------------------------

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


def test_an_official_batch_has_its_published_size():
    assert cifar.BATCH_SIZE * 3073 == 30_730_000
    assert len(batch_bytes(0)) == 4 * 3073


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_cifar10_official_forms(tmp_path, monkeypatch, place):
    write_batches(tmp_path / "a" / place, monkeypatch)
    assert_official(tmp_path / "a")
    write_archive(tmp_path / "b" / place / "cifar-10-binary.tar.gz", OFFICIAL)
    assert_official(tmp_path / "b")
    assert not (tmp_path / "b" / place / cifar.FOLDER).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (batch_bytes(0)[:-1], ["only 12291, needed 12292 bytes"]),
        (batch_bytes(0) + b"\0", ["found more, needed 12292"]),
        (b"\x0a" + batch_bytes(0)[1:], ["to 10, needed 0 to 9"]),
    ],
)
def test_wrong_batches_are_refused_by_name(tmp_path, monkeypatch, content, words):
    write_batches(tmp_path, monkeypatch)
    write(tmp_path / cifar.TRAIN[2], content)
    refused(tmp_path, str(tmp_path / cifar.TRAIN[2]), *words, name="cifar10")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({cifar.TRAIN[0]: batch_bytes(0)[:-1]}, [cifar.TRAIN[0], "only 12291, needed 12292"]),
        ({cifar.TRAIN[0]: batch_bytes(0) + b"\0"}, [cifar.TRAIN[0], "has 12293 bytes, a batch 12292"]),
        ({cifar.TRAIN[0]: b"\xff" + batch_bytes(0)[1:]}, [cifar.TRAIN[0], "to 255, needed 0 to 9"]),
        ({cifar.TRAIN[0]: "/etc/passwd"}, [cifar.TRAIN[0], "not an ordinary file"]),
        ({cifar.TRAIN[0]: None}, [cifar.TRAIN[0], "not an ordinary file"]),
        ({"../evil": b"x"}, ["'../evil' is not one of the official archive's"]),
        ({"/etc/evil\n": b"x"}, ["'/etc/evil\\n' is not one of"]),
    ],
)
def test_wrong_archive_members_are_refused_by_name(tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    first = {"../evil", "/etc/evil\n"} & set(changes)
    members = {name: changes[name] for name in first} | OFFICIAL | changes
    path = write_archive(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members)
    refused(tmp_path, str(path), *words, name="cifar10")


def test_an_archive_that_lacks_or_repeats_a_batch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, {name: c for name, c in OFFICIAL.items() if name != cifar.TRAIN[4]})
    refused(tmp_path, str(path), f"holds no {cifar.TRAIN[4]}", name="cifar10")
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            member = tarfile.TarInfo(cifar.TRAIN[0])
            member.size = 4 * 3073
            archive.addfile(member, io.BytesIO(batch_bytes(0)))
    refused(tmp_path, str(path), f"{cifar.TRAIN[0]}' is not one of", name="cifar10")


@pytest.mark.parametrize("keep", [0, 100, 0.3, 0.9])
def test_a_truncated_archive_is_refused_by_name(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    path = write_archive(tmp_path / "cifar-10-binary.tar.gz", OFFICIAL)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refused(tmp_path, str(path), name="cifar10", split="test")


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


FINE = np.arange(24) * 4 + 3


def fine_bytes(part: slice) -> bytes:
    """Like CIFAR-10's, with a coarse label, which is not the class, before the fine one."""
    planes = COLOURS[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
    return np.hstack([np.stack([FINE[part] % 20, FINE[part]], 1).astype(np.uint8), planes]).tobytes()


OFFICIAL_100 = {
    "cifar-100-binary": None,
    "cifar-100-binary/coarse_label_names.txt": b"aquatic_mammals",
    "cifar-100-binary/fine_label_names.txt": b"apple",
    "cifar-100-binary/train.bin": fine_bytes(slice(0, 20)),
    "cifar-100-binary/test.bin": fine_bytes(slice(20, 24)),
}


@pytest.mark.parametrize("form", ["batches", "archive", "subsets"])
@pytest.mark.parametrize("place", [".", "cifar100"])
def test_cifar100_in_each_of_its_forms(tmp_path, monkeypatch, form, place):
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    if form == "batches":
        for member, content in OFFICIAL_100.items():
            if content is not None:
                write(tmp_path / place / member, content)
    elif form == "archive":
        write_archive(tmp_path / place / "cifar-100-binary.tar.gz", OFFICIAL_100)
    else:
        for split, part in (("train", slice(0, 20)), ("test", slice(20, 24))):
            arrays = {"images": COLOURS[part], "labels": FINE[part], "class_names": np.array(cifar.FINE_NAMES)}
            write_subset(tmp_path / place / f"cifar100-{split}-subset.npz", arrays)
    train, test = load_images("cifar100", tmp_path), load_images("cifar100", tmp_path, split="test")
    assert available("cifar100", tmp_path)
    assert not available("cifar10", tmp_path)
    assert np.array_equal(np.concatenate([train.images, test.images]), COLOURS)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), FINE)
    assert (train.num_classes, train.full_size, test.full_size) == (100, 50_000, 10_000)
    assert (train.class_names[0], train.class_names[-1]) == ("apple", "worm")


@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        ("train.bin", fine_bytes(slice(0, 20))[:-1], ["only 61479, needed 61480"]),
        ("test.bin", fine_bytes(slice(0, 20)), ["has 61480 bytes, a batch 12296"]),  # as long as the other
        ("train.bin", b"\0\x64" + fine_bytes(slice(0, 20))[2:], ["to 100, needed 0 to 99"]),
        ("train.bin", None, ["not an ordinary file"]),
        ("meta.pkl", b"x", ["is not one of the official archive's"]),
    ],
)
def test_wrong_members_of_cifar100_are_refused_by_name(tmp_path, monkeypatch, member, content, words):
    monkeypatch.setattr(cifar, "BATCH_SIZE", 4)
    name = f"cifar-100-binary/{member}"
    path = write_archive(tmp_path / "cifar-100-binary.tar.gz", {name: content} | OFFICIAL_100 | {name: content})
    refused(tmp_path, str(path), name, *words, name="cifar100", split="test" if member == "test.bin" else "train")


def test_cifar100_takes_no_labels_of_cifar10(tmp_path):
    write_subset(tmp_path / "cifar100-train-subset.npz", subset())
    refused(tmp_path, "cifar100-train-subset.npz", "class_names", name="cifar100")


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


# --- downloads ----------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on the loopback that has MNIST's training files, and MNIST pointed to it with their MD5."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between pooch's attempts
    served = tmp_path / "served"
    write_mnist(served, IMAGES, LABELS)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    mnist = sources._SOURCES["mnist"]
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in served.iterdir()}
    splits = mnist.splits | {"train": replace(mnist.splits["train"], downloads=md5)}
    url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setitem(sources._SOURCES, "mnist", replace(mnist, url=url, splits=splits))
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_on_request_only(tmp_path, mirror):
    folder = tmp_path / "data"
    with pytest.raises(DataMissing):
        load_images("mnist", folder)
    assert not folder.exists()
    fetched = load_images("mnist", folder, download=True)
    assert np.array_equal(fetched.images, IMAGES)
    assert sorted(path.name for path in (folder / "mnist").iterdir()) == sorted(p.name for p in mirror.iterdir())
    for file in mirror.iterdir():
        file.unlink()
    assert load_images("mnist", folder, download=True).sha256 == fetched.sha256  # what is there is not fetched


def test_a_download_keeps_files_that_are_there(tmp_path, mirror):
    own = write(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", idx_bytes(IMAGES[::-1]))
    before = own.read_bytes()
    assert np.array_equal(load_images("mnist", tmp_path, download=True).images, IMAGES[::-1])
    assert own.read_bytes() == before


def test_a_download_with_another_md5_is_refused_and_not_kept(tmp_path, mirror):
    write(mirror / "train-labels-idx1-ubyte.gz", idx_bytes(LABELS[::-1].astype(np.uint8)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: not kept, .*MD5 hash") as caught:
        load_images("mnist", tmp_path / "data", download=True)
    assert not isinstance(caught.value, DataMissing)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "mnist" / "train-labels-idx1-ubyte.gz").exists()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_download_that_fails_is_missing_data(tmp_path, mirror):
    (mirror / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataMissing, match=r"train-images-idx3-ubyte.gz could not be fetched .*404") as caught:
        load_images("mnist", tmp_path / "data", download=True)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # of a refused request pooch leaves the socket open until then


def test_a_download_without_pooch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lowdyn\[reproduce\]"'):
        load_images("mnist", tmp_path, download=True)


def test_the_published_md5_are_pinned():
    downloads = [s.downloads for source in sources._SOURCES.values() for s in source.splits.values()]
    pinned = {md5 for files in downloads for md5 in files.values()}
    assert len(pinned) == 12  # four files for either MNIST, an archive for either CIFAR, two files for USPS
    assert all(len(md5) == 32 and int(md5, 16) for md5 in pinned)
    assert all(source.url.endswith("/") for source in sources._SOURCES.values())


def test_importing_needs_neither_torch_nor_scikit_learn_nor_pooch():
    code = "import sys, lowdyn.data; sys.exit(bool({'torch', 'sklearn', 'pooch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
