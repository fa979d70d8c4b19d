"""Saved DeepMatrixCompletions: the same model again, and files that are damaged or none."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from safetensors import safe_open
from safetensors.numpy import save_file

from lowdyn import DeepMatrixCompletion
from tests.partial_fits import as_sparse, fitted, low_rank

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


GONE = object()


def rewritten(path, *, parameters=None, numbers=None, arrays=None, header=None):
    """Change what a saved model holds."""

    def changed(old, new):
        return {name: one for name, one in {**old, **(new or {})}.items() if one is not GONE}

    with safe_open(path, "np") as file:
        old = file.metadata()
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    new = {
        "parameters": json.dumps(changed(json.loads(old["parameters"]), parameters)),
        "numbers": json.dumps(changed(json.loads(old["numbers"]), numbers)),
    }
    save_file(changed(held, arrays), path, metadata=changed({**old, **new}, header))


SEEN = low_rank(60, 40, 2, noise=0.1)[1]
COUNT = np.count_nonzero(~np.isnan(SEEN))
FACTOR = np.ones((60, 10))
BROKEN = {
    "an array missing": ({"arrays": {"seen_starts": GONE}}, "array seen_starts is missing"),
    "a factor missing": ({"arrays": {"factor_4": GONE}}, "array factor_4 is missing"),
    "a factor too many": ({"arrays": {"factor_5": np.eye(10)}}, "array factor_5 is unknown"),
    "a depth beyond the file": ({"numbers": {"depth": 10**12}}, "array factor_5 is missing"),
    "an unknown parameter": ({"parameters": {"width": 3}}, "parameter width is unknown"),
    "a parameter missing": ({"header": {"parameters": "{}"}}, "parameter center is missing"),
    "a list for a parameter": ({"parameters": {"rank": [1, 2]}}, r"rank must be a whole number, got \[1, 2\]"),
    "a list for the seed": ({"parameters": {"random_state": [1]}}, "random_state must be a whole number"),
    "a list for the parameters": ({"header": {"parameters": "[1]"}}, "its parameters are list, needed a JSON object"),
    "no parameters": ({"header": {"parameters": GONE}}, "its parameters are missing"),
    "numbers that are not JSON": ({"header": {"numbers": "{,}"}}, "its numbers are not JSON: "),
    "nested beyond reading": ({"header": {"numbers": "[" * 200_000}}, "recursion"),
    "a number missing": ({"numbers": {"mean": GONE}}, "number mean is missing"),
    "a mean that is NaN": ({"numbers": {"mean": np.nan}}, "mean must be finite"),
    "a mean too large": ({"numbers": {"mean": 10**400}}, "too large"),
    "one end of a range": ({"numbers": {"range": [1.0]}}, r"range must be two numbers, got \[1.0\]"),
    "a range upside down": ({"numbers": {"range": [2.0, 1.0]}}, "range must ascend, got 2.0 and 1.0"),
    "a negative penalty": ({"numbers": {"penalty": [-1.0, 0.0]}}, "penalty must be at least 0"),
    "feature names that are none": (
        {"numbers": {"feature_names": 3}},
        "feature_names must be null or a list of texts, got int",
    ),
    "feature names of others": ({"numbers": {"feature_names": ["a"]}}, "1 feature_names for 40 columns"),
    "a factor of NaN": ({"arrays": {"factor_0": np.nan * FACTOR}}, "array factor_0 holds NaN or infinity"),
    "a factor too large": ({"arrays": {"factor_0": 1e308 * FACTOR}}, "product of its factors is too large"),
    "a factor of whole numbers": (
        {"arrays": {"factor_0": FACTOR.astype(int)}},
        "factor_0 holds I64, needed F32 or F64",
    ),
    "a factor of another size": (
        {"arrays": {"factor_1": FACTOR[:40, :3]}},
        r"factor_1 has shape \(40, 3\), needed \(40, 10\)",
    ),
    "a factor of one dimension": (
        {"arrays": {"factor_0": np.ones(60)}},
        r"factor_0 \(60,\) and factor_1 \(40, 10\) must",
    ),
    "an empty factor": ({"arrays": {"factor_0": np.ones((60, 0))}}, r"factor_0 \(60, 0\) and"),
    "a curve of two dimensions": ({"arrays": {"loss_curve_": FACTOR}}, r"loss_curve_ has shape \(60, 10\)"),
    "a column out of range": (
        {"arrays": {"seen_columns": np.full(COUNT, 40, np.int32)}},
        r"no rows of a 60 x 40 matrix: .*index.* 40",
    ),
    "a negative column": (
        {"arrays": {"seen_columns": np.full(COUNT, -1, np.int32)}},
        "no rows of a 60 x 40 matrix: .*(index -1|negative)",
    ),
    "a column twice": ({"arrays": {"seen_columns": np.zeros(COUNT, np.int32)}}, "stored twice"),
    "too few columns": ({"arrays": {"seen_columns": np.zeros(3, np.int32)}}, "no rows of a 60 x 40 matrix: "),
    "starts that descend": (
        {"arrays": {"seen_starts": np.r_[np.arange(60)[::-1], COUNT]}},
        "no rows of a 60 x 40 matrix: ",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    fitted(SEEN).save(path)
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_model_is_refused_by_file_and_fault(saved, tmp_path, name):
    change, message = BROKEN[name]
    path = tmp_path / "model"
    path.write_bytes(saved.read_bytes())
    rewritten(path)
    DeepMatrixCompletion.load(path)
    rewritten(path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        DeepMatrixCompletion.load(path)
    assert str(caught.value).startswith(f"{path} is not a model that DeepMatrixCompletion.save wrote: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["float32", "sparse float32", "frame", "one rating", "no entry of its own", "went on"])
def test_whatever_was_fitted_is_saved(tmp_path, kind):
    matrix, options = {
        "float32": (SEEN.astype(np.float32), {"depth": 2}),
        "sparse float32": (as_sparse(SEEN.astype(np.float32)), {}),
        "frame": (pd.DataFrame(SEEN, columns=[f"film {place}" for place in range(40)]), {"center": "none"}),
        "one rating": (np.array([[4.0]]), {}),
        "no entry of its own": (np.where(np.arange(60)[:, None] < 3, np.nan, SEEN), {"early_stopping": False}),
        "went on": (SEEN, {"warm_start": True}),
    }[kind]
    model = fitted(matrix, **options)
    if kind == "went on":
        model.fit(matrix)
    model.save(tmp_path / "model")
    loaded = DeepMatrixCompletion.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.complete(), model.complete())
    assert loaded.complete().dtype == model.complete().dtype
    np.testing.assert_array_equal(loaded.loss_curve_, model.loss_curve_)
    for name in ("feature_names_in_", "n_features_in_"):
        np.testing.assert_array_equal(getattr(loaded, name, None), getattr(model, name, None))


def test_a_type_that_numpy_has_not_is_refused(saved, tmp_path):
    with safe_open(saved, "pt") as file:
        held, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - as above
    held["factor_0"] = held["factor_0"].bfloat16()
    safetensors.torch.save_file(held, tmp_path / "model", metadata=header)
    with pytest.raises(ValueError, match="array factor_0 holds BF16, needed F32 or F64"):
        DeepMatrixCompletion.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("given", "kept"),
    [(np.random.RandomState(3), None), (np.int64(3), 3), (3, 3)],
)
def test_a_seed_is_saved_and_a_random_state_is_not(tmp_path, given, kept):
    _, seen = low_rank(20, 15, 2)
    model = fitted(seen, random_state=given, rank=np.int64(4), tol=np.float32(0.001), early_stopping=np.True_)
    model.save(tmp_path / "model")
    loaded = DeepMatrixCompletion.load(tmp_path / "model")
    plain = {"rank": 4, "tol": float(np.float32(0.001)), "early_stopping": True, "random_state": kept}
    assert loaded.get_params() == {**model.get_params(), **plain}
    assert [type(one) for one in loaded.get_params().values()] == [
        type({**DeepMatrixCompletion().get_params(), **plain}[name]) for name in loaded.get_params()
    ]
    np.testing.assert_array_equal(loaded.complete(), model.complete())


def test_parameters_set_after_the_fit_do_not_change_what_is_saved_of_it(tmp_path):
    _, seen = low_rank(20, 15, 2)
    model = fitted(seen, depth=4).set_params(depth=2)
    model.save(tmp_path / "model")
    loaded = DeepMatrixCompletion.load(tmp_path / "model")
    assert loaded.depth == 2
    np.testing.assert_array_equal(loaded.complete(), model.complete())
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        model.set_params(rank=0).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
