"""Two processes train as one does, by DDP and by FSDP2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import xarray as xr
from torch.testing import assert_close

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")

from accelerate import Accelerator

from tests.distributed_runs import CASES, run

MODES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("distributed_runs.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, str(script), str(folder)], capture_output=True, text=True, timeout=300, check=False)
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


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_of_two_processes_ends_with_the_same_bytes(results, mode):
    assert results[0][f"{mode}, interrupted"] == 0
    assert results[0][f"{mode}, resumed"] == results[0][f"{mode}, whole"]
    assert_close(weights_of(results, f"{mode}, resumed"), weights_of(results, f"{mode}, whole"), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_divergence_is_said_by_every_process(results, mode):
    found = results[0][f"{mode}, diverged"]
    assert "the loss is not finite at step 2" in found["message"]
    assert found["everywhere"] == [len(found["message"])] * 2
