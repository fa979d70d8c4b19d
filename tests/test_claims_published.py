"""Numbers that were published: ours come near them, or the claim says in a sentence where they do not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lowdyn.claims.layerwise import decay
from lowdyn.experiments.experiment import each_cell
from tests.claim_runs import CLAIMS, smoke

KEPT = sorted((Path(__file__).resolve().parents[1] / "docs" / "results").glob("*/results.json"))
NUMBER = re.compile(r"\d+(?: \d{3})*(?:\.\d+)?(?:e-?\d+)?")


def numbers(value):
    """Return the numbers in a cell of the page, digits in groups of three taken together, signs left out."""
    texts = NUMBER.findall(value) if isinstance(value, str) else [value]
    return [abs(float(text.replace(" ", "") if isinstance(text, str) else text)) for text in texts]


def differs(measured, published):
    """Whether one number is more than a tenth off its published one, or there is not one for each."""
    ours, theirs = numbers(measured), numbers(published)
    return len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=0.1, atol=0)


def test_numbers_are_read_off_a_cell():
    assert numbers("41 500 → 11 000") == [41500, 11000]
    assert numbers("11.2, 2.08, 4.57e-4") == [11.2, 2.08, 4.57e-4]
    assert not differs(1.05, "1.1")
    assert not differs("0.147, -0.19", "0.158, 0.185")
    assert differs(1.384e-3, "1.1e-3")
    assert differs("908, 922", "908 → 922 → 710")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_a_claim_whose_kept_numbers_are_not_the_published_ones_says_so(path):
    for entry in json.loads(path.read_text(encoding="utf-8")):
        shown = [check for check in entry["checks"] if check["holds"] is None and numbers(check["expected"])]
        if any(differs(check["measured"], check["expected"]) for check in shown):
            assert CLAIMS[entry["id"]].DIFFERENCE, entry["id"]


def test_a_claim_whose_kept_verdicts_differ_says_why():
    kept = [one for path in KEPT for one in json.loads(path.read_text(encoding="utf-8")) if one["holds"] is not None]
    for name in {one["id"] for one in kept}:
        verdicts = {one["holds"] for one in kept if one["id"] == name}
        assert len(verdicts) == 1 or CLAIMS[name].SCALE_NOTE, name


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


def test_the_published_bound_on_discrimination_is_that_without_theta():
    """1 − 32(θ + 4δ)(L − l − 1)/L of the Gaussian samples, less what θ takes off it."""
    (data,) = smoke("C19").values()
    ((settings, cell),) = [one for one in each_cell(data) if one[0]["inputs"] == "gaussian"]
    away = 32 * cell["theta"] * (settings["depth"] - 1 - cell["layer"]) / settings["depth"]
    bound = (cell["discrimination_lower"] + away).sel(layer=slice(1, None))
    (check,) = [one for one in CLAIMS["C19"].check(smoke("C19")) if "δ alone" in one.text]
    assert check.text.endswith("l = 1 … 4")
    assert check.measured == f"{float(bound.min()):.1f} … {float(bound.max()):.1f}" == "-51.6 … -12.2"
