"""USPS in both of its forms, with images of no interest."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest

from lowdyn.data import DataError, DataMissing, available, load_images

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
generator = np.random.default_rng(0)
VALUES, LABELS = np.round(generator.uniform(-1, 1, (20, 256)), 3), np.arange(20) % 10


pytestmark = pytest.mark.usefixtures("no_data_folder")


def text(values=VALUES, labels=LABELS):
    return "".join(f"{label} {' '.join(map(str, row))} \n" for label, row in zip(labels, values.tolist(), strict=True))


def libsvm(values=VALUES, labels=LABELS):
    return "".join(
        f"{label + 1} {' '.join(f'{place}:{value}' for place, value in enumerate(row, 1))}\n"
        for label, row in zip(labels, values.tolist(), strict=True)
    )


def write(folder, name, content):
    place = folder / "usps"
    place.mkdir(exist_ok=True)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (place / name).write_bytes(pack(content.encode()))


@pytest.mark.parametrize("name", ["zip.train", "zip.train.gz", "usps.bz2"])
def test_both_forms_are_read_to_the_nearest_of_256_levels(tmp_path, name):
    write(tmp_path, name, libsvm() if name == "usps.bz2" else text())
    images = load_images("usps", tmp_path)
    assert (images.images.shape, images.used, images.num_classes) == ((20, 16, 16), "20 of 7 291 images", 10)
    np.testing.assert_array_equal(images.labels, LABELS)
    np.testing.assert_allclose(images.images.reshape(20, -1) / 127.5 - 1, VALUES, atol=1 / 255 + 1e-9)
    assert not available("usps", tmp_path)
    write(tmp_path, "zip.test.gz", text()[: text().index("\n") + 1])
    assert available("usps", tmp_path)
    assert len(load_images("usps", tmp_path, "test")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zip.train.gz", "", "no lines"),
        ("zip.train.gz", text() + "1 0.5\n", "line 21: found 2 fields"),
        ("zip.train.gz", text(1.1 * np.ones((1, 256)), [3]), "line 1: needed a whole label and values from -1 to 1"),
        ("zip.train.gz", text(np.full((1, 256), np.nan), [3]), "line 1: needed a whole label"),
        ("zip.train.gz", text(VALUES[:1], [3.5]), "line 1: needed a whole label"),
        ("zip.train.gz", text(VALUES[:1], [10]), "labels from 10 to 10, needed 0 to 9"),
        ("zip.train.gz", text().replace("-", "x"), "cannot be read"),
        ("usps.bz2", libsvm(VALUES[:1], [-1]), "labels from -1 to -1"),
        ("usps.bz2", libsvm().replace(" 7:", " 8:"), "line 1: needed 1:value to 256:value"),
        ("usps.bz2", "3\n", "cannot be read|line 1"),
    ],
)
def test_what_is_no_such_file_is_refused_by_name(tmp_path, name, content, message):
    write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_images("usps", tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_lines_than_there_are_and_damage_are_refused(tmp_path):
    row = text(VALUES[:1], [3])
    write(tmp_path, "zip.test", row * 2008)
    with pytest.raises(DataError, match="more than 2007 lines"):
        load_images("usps", tmp_path, "test")
    (tmp_path / "usps" / "zip.train.gz").write_bytes(gzip.compress(text().encode())[:-20])
    with pytest.raises(DataError, match=r"zip\.train\.gz: cannot be read"):
        load_images("usps", tmp_path)
    with pytest.raises(DataMissing, match=r"no usps\.t\.bz2 in .*usps.*http.*download=True"):
        load_images("usps", tmp_path / "nowhere", "test")


@pytest.mark.skipif(not (SHARED / "usps").is_dir(), reason=f"no digits: {SHARED / 'usps'} is not there")
def test_the_real_digits_have_the_published_counts():
    train, test = load_images("usps", SHARED), load_images("usps", SHARED, "test")
    assert np.bincount(train.labels).tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
    assert np.bincount(test.labels).tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    means = np.array([train.features()[train.labels == label].mean(axis=0) for label in range(10)])
    scaled = test.features(statistics=train.statistics)
    nearest = ((scaled[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == test.labels).mean() > 0.78
