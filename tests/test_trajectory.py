import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent
from lowdyn.files import replace_atomically
from lowdyn.problems import Factorization
from lowdyn.trajectory import Recorder, fits_single, load, plain_attributes, save, thinned
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def trajectory():
    """Return a real one: floats, NaN, whole numbers, names, attributes of every kind."""
    network = DeepLinearNetwork((4, 4, 3), generator=seeded(), start=lambda m, n, **_: gaussian(m, n))
    descent = Descent(lr=0.01, factor_rates=(1.0, 0.5))
    return gradient_descent(network, Factorization(gaussian(3, 4)), descent, 4, record=Spectra(top=1), every=2, tol=0)


# --- the recorder


def test_records_are_stacked_over_steps():
    recorder = Recorder({"layer": ["W1", "W2"]})
    for step in (0, 5, 6):
        recorder.add(step, {"loss": ((), 1.0 / (1 + step)), "norm": (("layer",), [step, 2.0 * step])})
    dataset = recorder.dataset({"lr": 0.1})
    assert dataset["loss"].dims == ("step",)
    assert dataset["norm"].sel(step=5, layer="W2").item() == 10.0
    assert dataset["step"].dtype == np.int64
    assert dataset.attrs == {"lr": 0.1}


@pytest.mark.parametrize("step", [0, 1])
def test_steps_must_follow_each_other(step):
    recorder = Recorder()
    recorder.add(1, {"loss": ((), 1.0)})
    with pytest.raises(ValueError, match=f"step {step} does not follow step 1"):
        recorder.add(step, {"loss": ((), 0.5)})


def test_every_record_holds_the_same():
    recorder = Recorder()
    recorder.add(0, {"loss": ((), 1.0)})
    with pytest.raises(ValueError, match=r"this record holds \['loss', 'norm'\], earlier ones \['loss'\]"):
        recorder.add(1, {"loss": ((), 0.5), "norm": ((), 1.0)})
    assert recorder.dataset().sizes["step"] == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"loss": ((), 1.0), "norm": (("layer",), [1.0])},
            r"'norm' is \('layer',\) \(1,\) .*, \('layer',\) \(2,\) in earl",
        ),
        ({"loss": ((), 1.0), "norm": (("other",), [1.0, 2.0])}, r"'norm' is \('other',\) \(2,\) in this record"),
        ({"loss": (("layer",), [1.0, 2.0]), "norm": (("layer",), [1.0, 2.0])}, r"'loss' is \('layer',\) \(2,\)"),
        ({"loss": ((), 1.0), "norm": (("layer",), [[1.0], [1.0, 2.0]])}, "inhomogeneous"),
        ({"loss": ((), None), "norm": (("layer",), [1.0, 2.0])}, "'loss' holds object; a record holds numbers"),
    ],
)
def test_every_record_has_the_same_shapes(record, message):
    recorder = Recorder()
    recorder.add(0, {"loss": ((), 1.0), "norm": (("layer",), [1.0, 2.0])})
    before = recorder.dataset()
    with pytest.raises(ValueError, match=message):
        recorder.add(1, record)
    assert recorder.steps == [0]
    assert recorder.dataset().identical(before)
    recorder.add(1, {"norm": (("layer",), [1.0, 2.0]), "loss": ((), 1.0)})


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0], 1.0])
def test_a_first_record_fits_its_coordinates(values):
    recorder = Recorder({"layer": ["W1", "W2"]})
    with pytest.raises(ValueError, match=r"conflicting sizes|norm"):
        recorder.add(0, {"norm": (("layer",), values)})
    assert recorder.steps == []


def test_nothing_recorded_is_a_trajectory_of_no_steps():
    assert Recorder({"layer": ["W1"]}).dataset().sizes == {"step": 0, "layer": 1}


def test_attributes_become_plain():
    attributes = {"a": 1, "b": 0.5, "c": "text", "d": None, "e": True, "f": [1, 2], "g": {"h": (0.5,)}}
    assert plain_attributes(attributes) == {
        "a": 1,
        "b": 0.5,
        "c": "text",
        "e": "true",
        "f": "[1, 2]",
        "g": '{"h": [0.5]}',
    }


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), np.bool_(True)])
def test_numpys_numbers_become_plain(value):
    assert plain_attributes({"value": value})["value"] in (3, 0.5, "true")


# --- files


def test_a_trajectory_comes_back_as_it_was(tmp_path):
    before = trajectory()
    path = save(before, tmp_path / "run.nc")
    assert path == tmp_path / "run.nc"
    xr.testing.assert_identical(load(path), before)


@given(
    st.lists(st.floats(width=64) | st.integers(-(2**31), 2**31).map(float), min_size=1, max_size=5),
    st.dictionaries(
        st.text("abcdefgh_", min_size=1).map("a".__add__),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False),
        max_size=4,
    ),
)
def test_any_numbers_and_attributes_come_back(tmp_path_factory, values, attrs):
    recorder = Recorder({"name": ["first layer", "Σ_W ≤ ½"]})
    for step, value in enumerate(values):
        recorder.add(step, {"loss": ((), value), "size": (("name",), [step, -step])})
    before = recorder.dataset(attrs)
    path = save(before, tmp_path_factory.mktemp("any") / "run.nc")
    xr.testing.assert_identical(load(path), before)


def test_files_are_made_with_their_folder_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "run.nc"
    save(xr.Dataset({"loss": ("step", [1.0])}), path)
    save(xr.Dataset({"loss": ("step", [2.0, 3.0])}), str(path))
    assert load(str(path))["loss"].values.tolist() == [2.0, 3.0]
    assert list(path.parent.iterdir()) == [path]


def test_a_loaded_trajectory_does_not_hold_its_file(tmp_path):
    path = save(trajectory(), tmp_path / "run.nc")
    loaded = load(path)
    path.unlink()
    assert np.isfinite(loaded["loss"]).all()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trajectory at .*gone\.nc"):
        load(tmp_path / "gone.nc")
    with pytest.raises(FileNotFoundError, match="no trajectory at"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = save(trajectory(), tmp_path / "run.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"run\.nc is not a complete netCDF trajectory"):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"not a netCDF file at all",
        b"\x89HDF\r\n\x1a\n",
        pytest.param(
            None,
        ),
    ],
    ids=["text", "signature", "blank half"],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    path = save(trajectory(), tmp_path / "run.nc")
    if content is None:  # what a crash leaves on some file systems: the right length, the end all zeros
        whole = path.read_bytes()
        content = whole[: len(whole) // 2].ljust(len(whole), b"\0")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.nc is not a complete netCDF trajectory"):
        load(path)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, stage):
    path = tmp_path / "run.nc"
    replace_atomically(path, b"old")

    def fail(*arguments):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if stage == "fsync" else (Path, "replace")), fail)
        with pytest.raises(OSError, match="no space left"):
            replace_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    replace_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    replace_atomically(path, b"old")
    seen = []
    real = os.fsync

    def watch(handle):
        seen.append(path.read_bytes())
        real(handle)

    monkeypatch.setattr(os, "fsync", watch)
    replace_atomically(path, b"new")
    assert (seen, path.read_bytes()) == ([b"old"], b"new")


# --- kept small


def test_what_is_thinned_keeps_its_ends_and_its_digits(tmp_path):
    steps, values = np.arange(0, 60, 10), np.random.default_rng(0).normal(size=(6, 4))
    run = xr.Dataset({"a": (("step", "index"), values), "b": (("step", "index"), values)}, {"step": steps}, {"lr": 1.0})
    kept = load(save(thinned(load(save(run, tmp_path / "whole.nc")), every=2, single=["b"]), tmp_path / "kept.nc"))
    assert kept["step"].values.tolist() == [0, 20, 40, 50]
    np.testing.assert_array_equal(kept["a"], values[[0, 2, 4, 5]])
    assert kept["b"].dtype == np.float32
    np.testing.assert_array_equal(kept["b"], values[[0, 2, 4, 5]].astype(np.float32))
    assert kept.attrs == {"lr": 1.0, "thinned": "b in single precision; 4 of 6 records"}
    assert run["b"].dtype == np.float64  # the one given is left as it was


def test_what_is_thinned_is_compressed_and_else_the_same(tmp_path):
    run = xr.Dataset({"a": (("step", "index"), np.tile(np.linspace(0, 1, 100), (100, 1)))}, {"step": range(100)})
    whole, small = (save(one, tmp_path / "run.nc").stat().st_size for one in (run, thinned(run)))
    assert 3 * small < whole
    xr.testing.assert_identical(load(tmp_path / "run.nc"), run)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"every": 0}, "every must be at least 1, got 0"), ({"single": ["b"]}, "no variable b: there are a")],
)
def test_thinning_says_what_it_cannot_do(options, said):
    with pytest.raises(ValueError, match=said):
        thinned(xr.Dataset({"a": ("step", [1.0, 2.0])}), **options)


def test_what_is_thinned_twice_says_so_twice():
    run = xr.Dataset({"a": ("step", np.arange(9.0)), "b": ("step", np.arange(9.0))}, {"step": range(9)})
    once = thinned(run, every=2, single=["b"])
    assert thinned(once, every=2).attrs == {"thinned": "b in single precision; 5 of 9 records; 3 of 5 records"}
    assert thinned(once, single=["a"]).attrs["thinned"].endswith("5 of 9 records; a in single precision")
    assert thinned(once).attrs == once.attrs


@pytest.mark.parametrize("value", [1e39, -1e39, 1e-60, -1e-40])
def test_what_single_precision_does_not_hold_is_not_rounded_to_it(value):
    run = xr.Dataset({"a": ("step", [1.0, np.inf, np.nan, 0.0, value]), "b": ("step", np.arange(5.0))})
    with pytest.raises(ValueError, match=r"^a: too large or too small for single precision; leave out of single"):
        thinned(run, single=["a", "b"])
    np.testing.assert_array_equal(thinned(run, single=["b"])["a"], run["a"])


def test_all_else_fits_single_precision():
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.linspace(-36, 36, 1000)
    tiny, largest = (float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "max"))
    assert fits_single(np.append(values, [tiny, -tiny, largest, -largest, 0.0, -0.0, np.nan, -np.inf]))
    assert fits_single(np.array([1e-40], np.float32))  # which loses nothing
