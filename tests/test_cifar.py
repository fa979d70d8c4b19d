"""CIFAR-10 and CIFAR-100 in their official forms, batches and archives, whole and damaged."""

import io
import tarfile

import numpy as np
import pytest

from lowdyn.data import available, cifar, load_images
from tests.image_files import (
    COLOURS,
    OFFICIAL,
    assert_official,
    batch_bytes,
    refused,
    subset,
    write,
    write_archive,
    write_batches,
    write_subset,
)

pytestmark = pytest.mark.usefixtures("no_data_folder")


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
