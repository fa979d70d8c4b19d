"""Claims of networks that learn can fail: on results that are changed, and on runs without their labels."""

import numpy as np
import pytest
import xarray as xr

from lowdyn.experiments.experiment import each_cell
from tests.claim_runs import CLAIMS, changed, judged, smoke


def test_progressive_features_need_the_labels():
    assert judged("C1", smoke("C1")) == [True, True]
    assert judged("C1", smoke("C1", shuffled=True)) == [False, False]


def test_invariant_subspaces_are_seen_where_they_are():
    assert all(judged("C2", smoke("C2")))
    alike = changed(smoke("C2"), update_values=lambda values: 0 * values + 1)
    assert judged("C2", alike) == [False, True] * 3
    spread = changed(smoke("C2"), singular_values=lambda values: values * (1 + 0.1 * values["record"]))
    assert judged("C2", spread) == [True, False] * 3
    unknown = changed(smoke("C2"), singular_values=lambda values: values.where(values["index"] != 3))
    assert judged("C2", unknown) == [True, False] * 3


def test_a_pretrained_transformer_is_judged_where_there_is_one():
    without = smoke("C2")
    assert CLAIMS["C2"].check(without)[-1].measured.startswith("cannot: ")
    images = without["spectra"]
    (_, seeds), *_ = each_cell(images)
    found = xr.concat([seeds], dim="cell").assign_attrs(model="ViT-B/16", classes=images.attrs["classes"])
    datasets = {**without, "spectra-pretrained": found}
    assert judged("C2", datasets) == [True] * 8
    assert "ViT-B/16" in CLAIMS["C2"].check(datasets)[-1].text
    assert len(CLAIMS["C2"].draw(datasets).data) == 4
    alike = changed({"spectra-pretrained": found}, update_values=lambda values: 0 * values + 1)
    assert judged("C2", {**without, **alike}) == [True] * 6 + [False, True]


def test_linear_layers_go_on_where_the_classes_are_separable():
    assert judged("C3", smoke("C3")) == [True] * 7
    # What ranks alone would call compression and separation is there for permuted labels and before training too.
    for control in ({"shuffled": True}, {"lr": 1e-9}):
        compresses, _, further, _, _, separable, _ = judged("C3", smoke("C3", **control))
        assert (compresses, further, separable) == (False, False, False)


def test_every_curve_of_linear_layers_is_judged():
    def without(**variables):
        return [place for place, holds in enumerate(judged("C3", changed(smoke("C3"), **variables))) if not holds]

    assert without(within_between_ratio=lambda ratio: 1 / ratio) == [0, 2]
    assert without(class_discrimination=lambda share: -share) == [1]
    assert without(feature_rank=lambda rank: 0 * rank + 9 - rank["layer"]) == [3]
    assert without(feature_rank=lambda rank: 0 * rank + rank["layer"]) == [4]
    assert without(probe_accuracy=lambda share: 0.9 * share) == [5]
    assert without(probe_accuracy=lambda share: share - 0.1 * (share["layer"] < 7)) == [5, 6]


def test_compression_of_real_data_needs_the_labels():
    assert all(judged("C23", smoke("C23")))
    straight, falls, *_ = judged("C23", smoke("C23", shuffled=True))  # of five layers
    assert (straight, falls) == (False, False)
    geometric = changed(smoke("C23"), within_between_ratio=lambda ratio: 0 * ratio + 0.5 ** ratio["layer"])
    assert all(judged("C23", geometric))
    growing = changed(smoke("C23"), within_between_ratio=lambda ratio: 0 * ratio + 2.0 ** ratio["layer"])
    assert judged("C23", growing) == [True, False] * 6


def test_data_that_stand_in_for_others_are_named():
    assert all("digits in place of" in check.text for check in CLAIMS["C23"].check(smoke("C23")))


def test_heads_that_help_are_told_from_heads_that_do_not():
    extra = {"within_between_ratio": lambda ratio: 0 * ratio + ratio["extra"], "probe_accuracy": lambda share: share}
    rising = changed(smoke("C24"), **{**extra, "probe_accuracy": extra["within_between_ratio"]})
    assert judged("C24", rising) == [True, True]
    falling = changed(rising, probe_accuracy=lambda share: -share)
    assert judged("C24", falling) == [True, False]
    level = changed(rising, within_between_ratio=lambda ratio: 0 * ratio)
    assert judged("C24", level) == [False, True]


def test_collapse_needs_the_labels():
    assert judged("C25", smoke("C25"))[0] is True
    assert judged("C25", smoke("C25", shuffled=True)) == [False] * 3
    ten_fold = {name: lambda values: 0 * values + 10.0 ** -values["record"] for name in ("nc1", "nc2", "nc3")}
    assert judged("C25", changed(smoke("C25"), **ten_fold)) == [True] * 3
    untrained = changed(smoke("C25"), **ten_fold, training_accuracy=lambda share: 0 * share)
    assert judged("C25", untrained) == [False] * 3


@pytest.mark.parametrize(
    ("ten", "one", "expected"),
    [(0.945, 0.934, [True, True]), (0.943, 0.93, [False, True]), (0.95, 0.945, [True, False])],
)
def test_low_rank_training_is_judged_by_its_accuracy(ten, one, expected):
    accuracies = {"dense": 0.95, "r = 10": ten, "r = 1": one, "advised": 0.95}
    (data,) = smoke("C14").values()
    row = np.vectorize(accuracies.get)(data["variant"].values)
    seen = changed(smoke("C14"), test_accuracy=lambda values: 0 * values + xr.DataArray(row, dims="cell"))
    assert judged("C14", seen) == [*expected, True, True]


def test_low_rank_training_is_judged_by_its_costs():
    dear = changed(smoke("C14"), parameters=lambda n: n * 4, peak_bytes=lambda n: n * 4)
    assert judged("C14", dear)[2:] == [False, False]
    unknown = changed(smoke("C14"), test_accuracy=lambda values: values * np.nan, peak_bytes=lambda n: n * np.nan)
    assert [judged("C14", unknown)[index] for index in (0, 1, 3)] == [False, False, False]


@pytest.mark.parametrize(
    ("size", "gain", "words"),
    [(0.9, 0.01, "1.00 at 0.900 of its"), (0.9, -0.01, "takes fewer than 10"), (1.1, 0.0, "takes more than 10")],
)
def test_where_advice_misses_the_claim_says_why(size, gain, words):
    (data,) = smoke("C14").values()
    advised, ten = (data.isel(cell=int(np.flatnonzero(data["variant"] == name)[0])) for name in ("advised", "r = 10"))
    off = xr.where(data["variant"] == "advised", 1.0, 0.0)
    seen = data.assign(
        parameters=data["parameters"] + off * (size * ten["parameters"] - advised["parameters"]),
        test_accuracy=0 * data["test_accuracy"] + 0.9 + off * gain,
    )
    (check,) = (one for one in CLAIMS["C14"].check({"lowrank-mlp": seen}) if one.text.startswith("advised ranks less"))
    assert words in check.measured
    assert ("since" in check.measured) == (size > 1)


@pytest.mark.parametrize(("over", "expected"), [(0.17, [True, True, True]), (0.5, [False, False, False])])
def test_at_the_published_width_the_costs_are_held_against_the_published_ones(over, expected):
    (data,) = smoke("C14").values()
    wide = data.assign_coords(width=("cell", [2000] * data.sizes["cell"]))
    costs = {name: over * wide[f"dense_{name}"] for name in ("parameters", "peak_bytes", "seconds")}
    assert judged("C14", {"lowrank-mlp": wide.assign(costs)})[2:] == expected


def test_separation_that_falls_is_none():
    falling = changed(smoke("C18"), class_discrimination=lambda x: 1 - x, class_separation=lambda x: 1 - x)
    assert not all(judged("C18", falling))


def test_steps_that_do_not_rise_are_no_cost():
    assert all(judged("C21", smoke("C21")))
    assert not all(judged("C21", changed(smoke("C21"), steps=lambda steps: 0 * steps + 100)))
    assert not all(judged("C21", changed(smoke("C21"), loss=lambda loss: loss + 1e-5)))


def test_compressed_completion_needs_the_right_frames():
    """Frames for other rows and columns leave the biases where they are in as many steps."""
    assert judged("C27", smoke("C27")) == [True, True]
    assert judged("C27", smoke("C27", outer_shuffled=True))[0] is False
    assert judged("C27", changed(smoke("C27"), best_error=lambda error: error + 1)) == [True, False]


def test_starts_that_differ_are_seen():
    """D_l of the first start to the power 1.3: a rate that is 30 % steeper in the logarithm."""
    steeper = changed(smoke("C22"), within_between_ratio=lambda ratio: ratio.where(ratio["cell"] > 0, ratio**1.3))
    assert not all(judged("C22", steeper))
