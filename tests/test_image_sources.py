"""Where images come from: names, folders, and downloads on request."""

import functools
import gc
import hashlib
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lowdyn.data import DataError, DataMissing, available, cifar, load_images, sources
from tests.image_files import IMAGES, LABELS, idx_bytes, some_images, write, write_batches, write_mnist

pytestmark = pytest.mark.usefixtures("no_data_folder")


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
