"""Checks of claims: how they judge, what they say, and the line that some of them fit."""

import json
import math

import numpy as np
import pytest
import xarray as xr

from lowdyn.claims.claim import Check, above, at_least, at_most, below, near, shown, verdict
from lowdyn.observe.depth import line_fit


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
        (at_most("x", 1.1, 1.0, tolerance=0.2), True),
        (at_most("x", 1.3, 1.0, tolerance=0.2), False),
        (below("x", 0.9, 1.0), True),
        (below("x", 1.0, 1.0), False),
        (above("x", 1.1, 1.0), True),
        (above("x", 1.0, 1.0), False),
        *((bound("x", math.nan, 1.0), False) for bound in (at_most, at_least, below, above)),
        *((bound("x", [0.5, math.nan], 1.0), False) for bound in (at_most, below)),
        *((bound("x", xr.DataArray([2.0, math.nan]), 1.0), False) for bound in (at_least, above)),
        (near("x", np.array([1.0, math.nan, 1.0]), 1.0, 0.1), False),
        (at_most("x", [np.zeros((2, 2)), xr.DataArray([0.5, 2.0])], 1.0), False),
        (at_least("x", np.array([[1.0, 2.0], [0.5, 3.0]]), 1.0), False),
        (near("x", [1.0, 0.5], 1.0, 0.4), False),
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
