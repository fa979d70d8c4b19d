"""Claims: whole as modules, true where they are exact, and false on broken runs and missing numbers."""

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from lowdyn import trajectory
from lowdyn.claims.claim import verdict
from lowdyn.experiments.experiment import Experiment
from tests.claim_runs import CLAIMS, changed, judged, smoke

EXACT = ("C4", "C5", "C6", "C7", "C17", "C20")  # these must hold wherever they run
ATTRIBUTES = ("ID", "PART", "TITLE", "CLAIM", "SOURCE", "PUBLISHED", "DEVIATION", "DIFFERENCE", "SCALE_NOTE")


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


BLOCKS = [False] * 3 + [True] * 2  # the block form fails; the loss falls, and the steps are made, all the same
DISTURBED = {  # what still holds of each claim, of runs whose W_1 is no longer orthogonal; wide ones are C5's and C6's
    "C4": [False] * 4,
    "C5": [*BLOCKS, False, True, True],
    "C6": [*BLOCKS, False, True, True],
    "C7": [False] * 2 + [True] * 6,
}


@pytest.mark.parametrize("name", DISTURBED)
def test_the_theorem_needs_its_start(name):
    assert all(judged(name, smoke(name)))
    assert judged(name, smoke(name, cells=2, disturbance=1e-6)) == DISTURBED[name]


@pytest.mark.parametrize(("name", "failing"), [("C4", 4), ("C5", 3), ("C6", 3)])
def test_the_theorem_needs_orthogonal_weights(name, failing):
    """Only the runs in full can start otherwise; a reduction refuses."""
    holds = judged(name, smoke(name, cells=2, start="normal"))
    assert holds == [False] * failing + [True] * (len(holds) - failing)


@pytest.mark.parametrize("name", ["C17", "C20"])
def test_compression_needs_the_labels(name):
    assert all(judged(name, smoke(name)))
    assert not all(judged(name, smoke(name, shuffled=True)))


BREAKING = {  # settings of runs that must fail, of how many cells, and which of the judged checks then hold
    "C8": ({"condition": 30.0}, 1, [False]),  # inputs far from white
    "C10": ({"outer_shuffled": True}, None, [False, True, False]),  # frames for other rows and columns
    "C19": ({"shuffled": True}, None, [False, True, False]),  # features measured by permuted labels
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_claim_of_the_laboratory_holds_and_can_fail(name):
    assert all(judged(name, smoke(name)))
    settings, cells, expected = BREAKING[name]
    assert judged(name, smoke(name, cells=cells, **settings)) == expected


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


NOT_IN_ONE_SEED = [  # variable that is NaN in the second of two seeds, and the places of the checks that read it
    ("C1", "within_between_ratio", [0]),
    ("C1", "class_discrimination", [1]),
    ("C2", "update_values", [0]),
    ("C2", "singular_values", [1]),
    ("C3", "within_between_ratio", [0, 2]),
    ("C3", "feature_rank", [3, 4]),
    ("C3", "probe_accuracy", [5, 6]),
    ("C4", "singular_values", [0, 1, 2, 3]),
    ("C5", "loss", [3, 7]),
    ("C5", "weight_norm", [0, 1, 2]),
    ("C5", "inert_scale", [2, 6]),
    ("C7", "weight_norm", [0, 1]),
    ("C7", "predicted_scale", [2, 3]),
    ("C7", "inert_scale", [4, 5]),
    ("C7", "singular_values", [6]),
    ("C7", "end_to_end_values", [7]),
    ("C8", "update_values", [0]),
    ("C9", "recovery_error", [0]),
    ("C9", "steps", [1]),
    ("C9", "error", [2]),
    ("C10", "difference", [0]),
    ("C10", "checked_difference", [1]),
    ("C10", "compressed", [2]),
    ("C11", "error", [0]),
    ("C11", "steps_to_1e_6", [1]),
    ("C14", "parameters", [2]),
    ("C14", "peak_bytes", [3]),
    ("C17", "within_between_ratio", [0, 1, 2, 3]),
    ("C18", "class_discrimination", [0, 1]),
    ("C19", "ratio_inside", [0]),
    ("C19", "slack_lower", [1]),
    ("C20", "within_between_ratio", [0]),
    ("C21", "steps", [0]),
    ("C21", "loss", [1]),
    ("C22", "within_between_ratio", [0]),
    ("C23", "within_between_ratio", [1, 3, 5]),
    ("C25", "nc1", [0]),
    ("C25", "training_accuracy", [0]),
    ("C26", "steps_to_1e_3", [0]),
    ("C27", "best_error", [0, 1]),
    ("C27", "bias_error", [1]),
]


def two_seeds(datasets):
    """The same runs as those of two seeds."""
    return {name: xr.concat([data, data.assign_coords(seed=[1])], dim="seed") for name, data in datasets.items()}


@pytest.mark.parametrize(("name", "variable", "places"), NOT_IN_ONE_SEED)
def test_what_is_not_a_number_in_one_of_two_seeds_is_no_evidence(name, variable, places):
    twice = two_seeds(smoke(name))
    sound, unknown = (
        judged(name, datasets)
        for datasets in (twice, changed(twice, **{variable: lambda values: values.where(values["seed"] == 0)}))
    )
    assert all(sound[place] for place in places)
    assert not any(unknown[place] for place in places)


def test_a_seed_that_never_learns_is_the_worst():
    never = changed(two_seeds(smoke("C25")), training_accuracy=lambda share: share * (share["seed"] == 0))
    assert judged("C25", never) == [False] * 3


@pytest.mark.parametrize("variable", ["within_between_ratio", "probe_accuracy"])
def test_heads_are_judged_by_the_mean_of_all_seeds(variable):
    rising = {name: lambda values: 0 * values + values["extra"] for name in ("within_between_ratio", "probe_accuracy")}
    twice = changed(two_seeds(smoke("C24")), **rising)
    assert judged("C24", twice) == [True, True]
    unknown = changed(twice, **{variable: lambda values: values.where(values["seed"] == 0)})
    assert judged("C24", unknown).count(False) == 1


# --- recovery -------------------------------------------------------------------------------------------------

RECOVERY_BREAKING = {
    "C9": {"recovery_error": lambda error: 0 * error + 1, "steps": lambda steps: -steps, "error": lambda e: 0 * e + 1},
    "C11": {"error": lambda error: 0 * error + 1, "steps_to_1e_6": lambda steps: steps + 1e4 * steps["cell"]},
    "C13": {"steps_to_1e_6": lambda steps: 0 * steps + 100},
    "C26": {"steps_to_1e_3": lambda steps: steps + 1e4 * steps["cell"]},
}


@pytest.mark.parametrize("name", RECOVERY_BREAKING)
def test_recovery_holds_and_every_check_of_it_can_fail(name):
    assert all(judged(name, smoke(name)))
    assert not any(judged(name, changed(smoke(name), **RECOVERY_BREAKING[name])))


def test_a_run_that_does_not_recover_is_no_evidence():
    for name, variable in (("C11", "steps_to_1e_6"), ("C26", "steps_to_1e_3")):
        unknown = changed(smoke(name), **{variable: lambda steps: np.nan * steps})
        assert not all(judged(name, unknown))


@pytest.mark.parametrize(("power", "expected"), [(1.0, [True, False]), (2.0, [False, True])])
def test_the_cost_of_a_step_is_judged_by_its_exponent(power, expected):
    # Times are not judged in a test; exponents of made-up ones are.
    made_up = changed(smoke("C12"), step_seconds=lambda seconds: 0 * seconds + 1e-6 * seconds["size"] ** power)
    assert judged("C12", made_up) == expected
