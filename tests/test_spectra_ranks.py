import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lowdyn.trajectory import load
from tests import spectra_on_ranks
from tests.started import environment

pytestmark = [
    pytest.mark.usefixtures("nothing_global_changes"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left behind."""
    path = tmp_path_factory.mktemp("two")
    processes = [
        subprocess.Popen(
            [sys.executable, spectra_on_ranks.__file__, str(rank), str(path)],
            env=environment(OMP_NUM_THREADS="1"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return path


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_see_the_spectra_of_one(kind, folder):
    expected = spectra_on_ranks.train().trajectory
    for rank in range(2):
        seen = load(folder / f"{kind}{rank}.nc")
        assert seen["layer"].values.tolist() == expected["layer"].values.tolist() == ["hidden1", "output"]
        assert seen["exact"].values.tolist() == [[1, 1], *[[0, 1]] * spectra_on_ranks.STEPS]
        for name in expected.data_vars:
            np.testing.assert_allclose(seen[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def left(folder, name):
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in range(2)]


def test_the_looks_at_a_sharded_model_are_divided(folder):
    hidden, output = [list(spectra_on_ranks.SIZES[1::-1]), list(spectra_on_ranks.SIZES[:0:-1])]
    looks = spectra_on_ranks.STEPS + 1
    assert [one["shapes"] for one in left(folder, "fsdp")] == [[hidden] * looks, [output] * looks]
    assert [one["shapes"] for one in left(folder, "ddp")] == [[hidden, output] * looks] * 2


def test_every_process_has_the_whole_state_of_a_sharded_model(folder):
    first, second = left(folder, "fsdp")
    expected = spectra_on_ranks.state_of(spectra_on_ranks.train())
    assert first["state"] == second["state"]
    assert first["state"].keys() == expected.keys()
    for name in ("0.look.0.start", "0.look.1.start", "0.look.0.generator", "0.look.1.left.basis"):
        np.testing.assert_allclose(first["state"][name], expected[name], atol=1e-6)


def test_a_look_that_fails_in_one_process_is_left_out_by_all(folder):
    first, second = left(folder, "failing")
    assert first == second
    assert first["steps"] == [0]
    assert [one["step"] for one in first["failures"]] == [1, 2, 3]
    assert all("NaN" in one["because"] or "converge" in one["because"] for one in first["failures"])


def test_processes_that_share_a_model_agree_when_to_look(folder):
    for name in ("steps", "partly"):
        first, second = ((folder / f"{name}{rank}").read_text() for rank in range(2))
        assert first == second
        assert len(json.loads(first)) >= 3
