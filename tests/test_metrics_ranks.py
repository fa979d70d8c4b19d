"""Two processes over gloo have the metrics of one, under DDP and under FSDP2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from lowdyn import layer_metrics
from tests.metrics_on_ranks import ASKED, case

SCRIPT = Path(__file__).with_name("metrics_on_ranks.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), folder], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_two_ranks_have_the_metrics_of_one(ranks, wrapper):
    model, x, labels = case()
    asked = {**ASKED, "distributed": False}
    expected = layer_metrics(model, [(x, labels)], 4, "relu|output", balanced=False, probe=[(x, labels)], **asked)
    first, second = (xr.Dataset.from_dict(rank[wrapper]) for rank in ranks)
    xr.testing.assert_identical(first, second)
    assert first.attrs == expected.attrs
    xr.testing.assert_allclose(first, expected, rtol=1e-6)
    assert list(first["layer"].values) == list(expected["layer"].values)


def test_each_rank_alone_has_its_share(ranks):
    assert [rank["share"] for rank in ranks] == [30, 30]


def test_a_rank_without_samples_stops_all(ranks):
    assert [rank["empty"] for rank in ranks] == ["the loader gave no batch (on process 0)"] * 2


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_what_fails_on_one_rank_is_raised_on_both(ranks, wrapper):
    first, second = (rank[f"{wrapper} failures"] for rank in ranks)
    assert first == second
    label = "ValueError: labels must lie in 0 … 3 (num_classes=4), got 4 … 7 (on process 0)"
    assert first["nan"] == "ValueError: features of 'input' hold NaN or infinity (on process 1)"
    assert first["label"] == label
    assert first["probe"] == label
    assert first["loader"] == "RuntimeError: OSError('no such disk') (on process 1)"
    shape = "ValueError: inputs must be a batch (samples, …), got shape (); add a dimension (on process 1)"
    assert first["shape"] == shape
    assert "(on process 1)" in first["kind"]
    if wrapper == "ddp":
        assert first["layers"].startswith("ValueError: process 1 saw the layers [('input', 6), ('relu1', 16)")


def test_ranks_of_a_sharded_model_go_into_a_forward_pass_together(ranks):
    first = ranks[0]["fsdp failures"]
    unequal = "ValueError: the loader gave no batch {}, that of process {} did; a sharded model takes as many on every"
    assert first["fewer"] == f"{unequal.format(3, 0)} process (on process 1)"
    assert first["none"] == f"{unequal.format(1, 1)} process (on process 0)"
    assert first["probe loader"] == "RuntimeError: OSError('no such disk') (on process 1)"
    assert first["later"]["steps"] == [0, 1, 3, 4]
    (failure,) = first["later"]["failures"]
    assert failure["step"] == 2
    assert failure["because"] == "RuntimeError: OSError('no such disk') (on process 1)"


def test_ranks_that_look_together_agree_when(ranks):
    first, second = (rank["tracked"] for rank in ranks)
    assert first == second
    assert len(first["steps"]) >= 2
    assert {one["because"] for one in first["failures"]} == {
        "ValueError: features of 'input' hold NaN or infinity (on process 1)"
    }
