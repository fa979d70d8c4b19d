"""Claims: they hold on the runs they are about, fail on runs made to break them, and are whole as modules."""

import inspect
import json
import math
import re
from functools import cache

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr

from lowdyn import trajectory
from lowdyn.claims.claim import Check, all_claims, at_least, at_most, near, shown, verdict
from lowdyn.claims.layerwise import decay, line_fit
from lowdyn.data import DataMissing, load_images, load_set
from lowdyn.experiments.experiment import Experiment, combine, each_cell

CLAIMS = all_claims()
EXACT = ("C4", "C5", "C6", "C7", "C17", "C20")  # these must hold wherever they run
ATTRIBUTES = ("ID", "TITLE", "CLAIM", "SOURCE", "PUBLISHED", "DEVIATION")
# The networks of C1 and C15 at smoke scale take seconds; these settings take a fraction of one.
SMALL = {
    "C1": {"samples": 500, "width": 64, "depth": 6, "epochs": 60},
    "C15": {"pretrained": 64, "pretraining_steps": 4, "adapted": 40, "steps": 2, "tested": 40},
}


def smoke(name, seed=0, cells=None, **controls):
    """Datasets of a claim at smoke scale, of its first `cells` cells, with settings that may break it."""
    return run_once(name, seed, cells, tuple(controls.items()))


@cache
def run_once(name, seed, cells, controls):
    datasets = {}
    for experiment in CLAIMS[name].EXPERIMENTS:
        known = inspect.signature(experiment.run).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        breaking = {key: value for key, value in controls if key in known or open_ended}
        given = data_of(experiment)
        runs = []
        for cell in experiment.plans["smoke"].cells[:cells]:
            settings = {**cell, **SMALL.get(name, {}), **breaking}
            generator = torch.Generator().manual_seed(seed)
            runs.append((settings, [experiment.run(**settings, **given, generator=generator)]))
        datasets[experiment.name] = combine(runs, [seed])
    return datasets


def data_of(experiment):
    """The last of an experiment's choices of data, which needs no data folder if any does."""
    try:
        if experiment.data:
            return {"data": tuple(load_set(name) for name in experiment.data[-1])}
        return {"images": load_images(experiment.images[-1])} if experiment.images else {}
    except DataMissing as missing:
        pytest.skip(str(missing))


def judged(name, datasets):
    """Whether each judged check holds, in order."""
    return [check.holds for check in CLAIMS[name].check(datasets) if check.holds is not None]


def changed(datasets, **variables):
    """The same datasets with some variables replaced by functions of them."""
    return {
        name: data.assign(
            {variable: change(data[variable]) for variable, change in variables.items() if variable in data}
        )
        for name, data in datasets.items()
    }


# --- what a claim is ------------------------------------------------------------------------------------------


def test_ids_are_unique_and_in_the_order_of_the_lecture():
    numbers = [int(name.removeprefix("C")) for name in CLAIMS]
    assert numbers == sorted(set(numbers))
    assert set(EXACT) <= CLAIMS.keys()
    for name, claim in CLAIMS.items():
        assert name == claim.ID
        assert re.fullmatch(rf"lowdyn\.claims\.c{int(name[1:]):02d}_[a-z_]+", claim.__name__)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
class TestModule:
    def test_says_what_it_is(self, claim):
        for attribute in ATTRIBUTES:
            text = getattr(claim, attribute)
            assert isinstance(text, str), attribute
            assert text == " ".join(text.split()), attribute
        assert len(claim.TITLE) < 60 < len(claim.CLAIM) < 400
        assert claim.CLAIM.endswith(".")
        assert "arXiv" in claim.SOURCE
        assert claim.__doc__.startswith((f"{claim.ID}. ", f"{claim.ID} "))

    def test_reads_experiments(self, claim):
        assert claim.EXPERIMENTS
        assert isinstance(claim.EXPERIMENTS, tuple)
        assert all(isinstance(experiment, Experiment) for experiment in claim.EXPERIMENTS)

    def test_checks_are_plain_and_something_is_judged(self, claim):
        checks = claim.check(smoke(claim.ID))
        assert len({check.text for check in checks}) == len(checks)
        assert any(check.holds is not None for check in checks)
        for check in checks:
            values = check.as_json()
            assert values.keys() == {"text", "measured", "expected", "tolerance", "holds"}
            assert json.loads(json.dumps(values, allow_nan=False)) == values

    def test_draws_its_picture(self, claim):
        figure = claim.draw(smoke(claim.ID))
        assert isinstance(figure, go.Figure)
        assert len(figure.data) > 0
        assert figure.layout.title.text

    def test_sees_the_same_in_a_file(self, claim, tmp_path):
        datasets = smoke(claim.ID)
        read = {
            name: trajectory.load(trajectory.save(data, tmp_path / f"{name}.nc")) for name, data in datasets.items()
        }
        assert claim.check(read) == claim.check(datasets)
        assert claim.draw(read) == claim.draw(datasets)

    def test_changes_nothing(self, claim):
        datasets = smoke(claim.ID)
        before = {name: data.copy(deep=True) for name, data in datasets.items()}
        claim.check(datasets)
        claim.draw(datasets)
        for name, data in datasets.items():
            xr.testing.assert_identical(data, before[name])


# --- they hold, and can fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_claim_holds(name, seed):
    checks = CLAIMS[name].check(smoke(name, seed))
    assert [check.sentence() for check in checks if check.holds is False] == []
    assert verdict(checks)


@pytest.mark.parametrize("control", [{"start": "normal"}, {"disturbance": 1e-6}], ids=str)
@pytest.mark.parametrize("name", ["C4", "C5", "C6", "C7"])
def test_the_theorem_needs_its_start(name, control):
    assert all(judged(name, smoke(name)))
    assert not all(judged(name, smoke(name, cells=2, **control)))


@pytest.mark.parametrize("name", ["C17", "C20"])
def test_compression_needs_the_labels(name):
    assert all(judged(name, smoke(name)))
    assert not all(judged(name, smoke(name, shuffled=True)))


BREAKING = {
    "C8": {"update_values": lambda values: 0 * values + 1},  # every direction moved alike
    "C10": {"difference": lambda difference: 3 * difference},
    "C19": {"compression_ratio": lambda ratio: 2 * ratio, "slack_upper": lambda slack: slack / 2},
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_claim_of_the_laboratory_holds_and_can_fail(name):
    assert all(judged(name, smoke(name)))
    assert not all(judged(name, changed(smoke(name), **BREAKING[name])))


def test_progressive_features_need_the_labels():
    compresses, _ = judged("C1", smoke("C1"))
    assert compresses
    assert judged("C1", smoke("C1", shuffled=True)) == [False, False]


def test_the_worst_seed_decides():
    """One disturbed run among sound ones."""
    name, sound = "theorem-square", smoke("C5", cells=1)
    broken = smoke("C5", cells=1, disturbance=1e-6)[name]
    both = xr.concat([sound[name], broken.assign_coords(seed=[1])], dim="seed", join="outer")
    assert all(judged("C5", sound))
    assert not all(judged("C5", {**sound, name: both}))


def test_geometric_growth_is_no_compression():
    """1/D_l lies on as straight a line as D_l, upwards."""
    assert all(judged("C17", smoke("C17")))
    assert not all(judged("C17", changed(smoke("C17"), within_between_ratio=lambda ratio: 1 / ratio)))


def test_separation_that_falls_is_none():
    falling = changed(smoke("C18"), class_discrimination=lambda x: 1 - x, class_separation=lambda x: 1 - x)
    assert not all(judged("C18", falling))


def test_steps_that_do_not_rise_are_no_cost():
    assert all(judged("C21", smoke("C21")))
    assert not all(judged("C21", changed(smoke("C21"), steps=lambda steps: 0 * steps + 100)))
    assert not all(judged("C21", changed(smoke("C21"), loss=lambda loss: loss + 1e-5)))


def test_starts_that_differ_are_seen():
    """D_l of the first start to the power 1.3: a rate that is 30 % steeper in the logarithm."""
    steeper = changed(smoke("C22"), within_between_ratio=lambda ratio: ratio.where(ratio["cell"] > 0, ratio**1.3))
    assert not all(judged("C22", steeper))


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        *(("C4", variable) for variable in ("singular_values", "predicted_scale", "frame_right_turn")),
        *(("C5", variable) for variable in ("off_block", "inert_spread", "inert_scale", "predicted_scale")),
        *(("C7", variable) for variable in ("singular_values", "end_to_end_values", "predicted_scale")),
        ("C17", "within_between_ratio"),
        ("C20", "within_between_ratio"),
    ],
)
def test_what_is_not_a_number_is_no_evidence(name, variable):
    """NaN in the middle of the first run: the claim must not hold on what is left."""

    def punched(values):
        dim = "step" if "step" in values.dims else "layer"
        middle = values[dim][values.sizes[dim] // 2]
        return values.where((values[dim] != middle) | (values["cell"] != 0))

    assert all(judged(name, smoke(name)))
    assert not all(judged(name, changed(smoke(name), **{variable: punched})))


# --- numbers that were published ------------------------------------------------------------------------------


def test_compression_is_that_of_the_paper():
    (data,) = smoke("C17").values()
    published = [float(number) for number in re.findall(r"\d\.?[\de.-]*\d", CLAIMS["C17"].PUBLISHED.split(" = ")[-1])]
    for settings, cell in each_cell(data):
        if (settings["activation"], settings["depth"]) == ("linear", 8):
            np.testing.assert_allclose(cell["within_between_ratio"].isel(seed=0), published, rtol=0.01)
            np.testing.assert_allclose(decay(cell)[0], 0.185, rtol=0.01)


def test_rates_are_those_of_the_paper():
    """Within 3 % for linear networks; of a single ReLU network within 15 %."""
    checks = [check for check in CLAIMS["C20"].check(smoke("C20")) if check.holds is None]
    assert len(checks) == 6
    for check in checks:
        assert check.measured == pytest.approx(check.expected, rel=0.03 if "linear" in check.text else 0.15)


# --- checks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (at_most("x", 1.0, 1.0), True),
        (at_most("x", 1.1, 1.0), False),
        (at_least("x", 1.0, 1.0), True),
        (at_least("x", 0.9, 1.0), False),
        (near("x", 1.05, 1.0, 0.06), True),
        (near("x", 0.95, 1.0, 0.04), False),
        (shown("x", 1.0, "—"), None),
        *((bound("x", math.nan, 1.0), False) for bound in (at_most, at_least)),
        (near("x", math.nan, 1.0, 1.0), False),
        (near("x", math.inf, 1.0, 1.0), False),
        (at_most("x", np.float32(1.0), 1.0), True),
        (at_least("x", xr.DataArray(2.0), 1.0), True),
    ],
)
def test_checks_judge(check, holds):
    assert check.holds is holds
    assert json.loads(json.dumps(check.as_json(), allow_nan=False))["holds"] is holds


@pytest.mark.parametrize(
    ("given", "result"),
    [([], False), ([None], False), ([True, None], True), ([True, False], False), ([True, True], True)],
)
def test_a_claim_holds_when_all_that_is_judged_does(given, result):
    assert verdict([Check("x", 1.0, 1.0, 0.0, holds) for holds in given]) is result


def test_a_check_says_what_was_measured():
    assert at_most("angle", 0.25, 0.1).sentence() == "angle: 0.25, expected ≤ 0.1"
    assert shown("D_l", "1, 2", "3").sentence() == "D_l: 1, 2, expected 3"
    assert at_most("angle", math.inf, 0.1).as_json()["measured"] == "inf"


def test_lines_are_fitted_as_numpy_does():
    values = np.random.default_rng(0).normal(size=6)
    slope, r_squared = line_fit(range(6), values)
    fitted = np.polynomial.Polynomial.fit(range(6), values, 1)
    assert slope == pytest.approx(fitted.deriv()(0.0))
    residual = values - fitted(np.arange(6))
    assert r_squared == pytest.approx(1 - residual.var() / values.var())
