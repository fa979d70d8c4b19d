"""What goes wrong in a run, a check or a picture is told in the result, and the other claims go on."""

import re

import numpy as np
import pytest

from lowdyn.claims.claim import Check, at_most
from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Factorization
from tests.fake_claims import Runs, claim, experiment, raising, read, reproduce, runs_after

pytestmark = pytest.mark.usefixtures("no_data_folder")


def diverge(*, steps, factor, generator):
    network = DeepLinearNetwork((4, 4, 4), 1.0, generator=generator)
    return gradient_descent(network, Factorization(np.eye(4)), Descent(lr=1e6), 500)


diverge.__module__ = "lowdyn.linalg"


def test_a_run_that_diverges_names_step_and_rates_and_the_others_go_on(folder):
    bad, good = reproduce(folder, claim("C1", experiment(diverge, "bad")), claim("C2"))
    assert bad["holds"] is None
    assert bad["reason"].startswith("error: ")
    assert re.search(r"step \d+ with lr 1e\+06; the largest stable rate here is about 16;", bad["reason"])
    assert good["holds"] is True
    assert [entry["id"] for entry in read(folder / "results.json")] == ["C1", "C2"]


@pytest.mark.parametrize(
    "broken",
    [
        claim("C1", experiment(Runs({1: RuntimeError("out of luck")}), "bad")),
        claim("C1", check=raising(RuntimeError("out of luck"))),
        claim("C1", draw=raising(RuntimeError("out of luck"))),
    ],
    ids=["run", "check", "draw"],
)
def test_an_error_is_told_and_the_others_go_on(folder, broken):
    bad, good = reproduce(folder, broken, claim("C2"))
    assert (bad["holds"], bad["reason"]) == (None, "error: RuntimeError: out of luck")
    assert bad["checks"] == []
    assert good["holds"] is True
    assert read(folder / "results.json") == [bad, good]


@pytest.mark.parametrize(
    "check",
    [
        Check("x", np.float32(1.0), 2.0, None, True),
        Check("x", 1.0, 2.0, None, np.bool_(True)),
        Check("x", 1.0, float("nan"), None, True),
        Check("x", 1.0, 2.0, float("inf"), True),
        Check("x \udcff", 1.0, 2.0, None, True),
    ],
    ids=["float32", "bool_", "NaN", "infinity", "surrogate"],
)
def test_a_check_that_is_no_json_costs_its_claim_alone(folder, check):
    """Written as plain values or told as an error; never a results.json that cannot be read, nor the end of it."""
    bad, good = reproduce(folder, claim("C1", check=lambda _: [check]), claim("C2"))
    assert bad["holds"] is True or bad["reason"].startswith("error: ")
    assert good["holds"] is True
    assert [entry["id"] for entry in read(folder / "results.json")] == ["C1", "C2"]


def test_a_measurement_that_is_not_finite_does_not_hold_and_can_be_written(folder):
    (entry,) = reproduce(
        folder, claim(check=lambda _: [at_most("x", float("inf"), 1.0), at_most("y", float("nan"), 1)])
    )
    assert entry["holds"] is False
    assert [check["measured"] for check in read(folder / "results.json")[0]["checks"]] == ["inf", "nan"]


def test_an_error_is_not_kept(folder):
    reproduce(folder, claim(of=experiment(Runs({2: RuntimeError("once")}))))
    assert runs_after(folder) == [1, 2]
    assert read(folder / "results.json")[0]["holds"] is True


def test_an_error_has_no_picture(folder):
    """The picture of an earlier seed beside the error of this one would be taken for its own."""
    reproduce(folder, claim(), seed=0)
    (entry,) = reproduce(folder, claim(of=experiment(Runs({1: RuntimeError("now")}))), seed=9)
    assert entry["reason"] == "error: RuntimeError: now"
    assert not (folder / "C90" / "figure.json").exists()
