"""Two processes train as one does, by DDP and by FSDP2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr
from torch.testing import assert_close

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")

from accelerate import Accelerator

from tests.distributed_runs import CASES, RESUMED, run, tracked
from tests.started import environment

MODES, TRACKED = ("ddp", "fsdp2"), ("tracked", "tracked, resumed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return launched(launch, tmp_path_factory.mktemp("processes"), "all")


def launched(launch, folder, what, **variables):
    command = [sys.executable, "-m", *launch, str(Path(__file__).with_name("distributed_runs.py")), str(folder), what]
    given = environment(**variables)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=given)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = safetensors.torch.load_file(folder / "results.safetensors")
    return json.loads((folder / "results.json").read_text()), weights


def weights_of(results, name):
    return {key.rpartition("/")[2]: value for key, value in results[1].items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(results, mode, case):
    found = results[0][f"{mode}, {case}"]
    assert found["spread"] == (mode == "fsdp2")
    model, curve = run(case, Accelerator(cpu=True, gradient_accumulation_steps=CASES[case][2]))
    weights = weights_of(results, f"{mode}, {case}")
    assert_close(weights, dict(model.state_dict()), rtol=0, atol=1e-6)
    ours = xr.Dataset.from_dict(found["curve"])
    np.testing.assert_array_equal(ours["step"], curve["step"])
    np.testing.assert_allclose(ours["loss"], curve["loss"], rtol=1e-6)
    np.testing.assert_allclose(ours["accuracy"], curve["accuracy"], rtol=1e-12)


def test_accelerate_launch_says_how_many_processes_there_are(tmp_path):
    """By Accelerate's own configuration: the script makes an Accelerator() and no more.

    Of CPUs alone accelerate 1.15 starts several processes through MPI only. Its launcher of several GPUs needs none of
    them, and the variable that its configuration of a CPU sets keeps the processes off those that are there.
    """
    config = tmp_path / "config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n"
        "mixed_precision: 'no'\nmain_process_port: 0\n"
    )
    launch = ["accelerate.commands.launch", "--config_file", str(config)]
    found = launched(launch, tmp_path, "configured", ACCELERATE_USE_CPU="true")
    assert (found[0]["processes"], found[0]["device"]) == (2, "cpu")
    model, curve = run("minibatches", Accelerator(cpu=True))
    assert_close(weights_of(found, "launched"), dict(model.state_dict()), rtol=0, atol=1e-6)
    np.testing.assert_allclose(xr.Dataset.from_dict(found[0]["curve"])["loss"], curve["loss"], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_of_two_processes_ends_with_the_same_bytes(results, mode, case):
    whole, resumed = (results[0][f"{mode}, {case}, {name}"] for name in ("whole", "resumed"))
    assert (whole["left"], resumed["left"]) == (None, 0)
    assert resumed["curve"] == whole["curve"]
    weights = [weights_of(results, f"{mode}, {case}, {name}") for name in ("whole", "resumed")]
    assert weights[0]
    assert_close(weights[1], weights[0], rtol=0, atol=0)
    if case == "bf16":  # and not the run in float32
        plain = weights_of(results, f"{mode}, minibatches, whole")
        assert any(not torch.equal(value, plain[name]) for name, value in weights[0].items())


@pytest.mark.parametrize("mode", MODES)
def test_a_tracker_of_two_processes_records_what_one_does(results, mode):
    model, tracker = tracked(Accelerator(cpu=True))
    expected = tracker.trajectory
    assert expected["step"].values.tolist() == [0, 2, 4, 6, 8]
    assert expected["exact"].sel(layer="hidden2").values.tolist() == [1, 0, 0, 0, 0]
    for seen in map(xr.Dataset.from_dict, results[0][f"{mode}, tracked"]):
        assert seen.data_vars.keys() == expected.data_vars.keys()
        assert "failed" not in seen.attrs
        xr.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-6)
    assert_close(weights_of(results, f"{mode}, tracked"), dict(model.state_dict()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_tracker_of_two_processes_goes_on_with_the_run(results, mode):
    whole, resumed = (map(xr.Dataset.from_dict, results[0][f"{mode}, {name}"]) for name in TRACKED)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.identical(theirs)
    assert_close(*(weights_of(results, f"{mode}, {name}") for name in TRACKED), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_divergence_is_said_by_every_process(results, mode):
    found = results[0][f"{mode}, diverged"]
    assert "the loss is not finite at step 2" in found["message"]
    assert found["everywhere"] == [len(found["message"])] * 2
