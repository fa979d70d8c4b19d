"""Checkpoints: what is written is read again, damage is passed over, and kills at any moment lose nothing."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from lowdyn.checkpoints import Checkpoints
from lowdyn.networks import MLP
from tests.cases import gaussian, seeded
from tests.resumed import assert_same_run, interrupted, run

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")
pytestmark = pytest.mark.usefixtures("nothing_global_changes")

STATE = {
    "numbers": [0, -1, 2**70, 0.1, float("inf"), True, None, "ä"],
    "pair": (0.9, 0.999),
    3: {"step": torch.tensor(3.0), "3": gaussian(2, 3)},
    "3": torch.arange(4),
    "array": np.arange(6.0).reshape(2, 3)[:, ::2],
    "milestones": Counter({30: 2}),
    "empty": [{}, (), torch.empty(0, 3)],
    "kinds": [torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.uint8, torch.bool)],
}


# --- one checkpoint


def test_what_is_written_is_read_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    model = {"weight": gaussian(3, 2).mT, "half": torch.ones(2).half(), "_extra_state": {"scale": 2.0}}
    checkpoints.write(12, model, STATE)
    assert checkpoints.last() == 12
    found, state = checkpoints.read(12, model)
    assert found.keys() == model.keys()
    torch.testing.assert_close([found["weight"], found["half"]], [model["weight"], model["half"]], rtol=0, atol=0)
    assert found["_extra_state"] == {"scale": 2.0}
    assert_close(state[3], STATE[3], rtol=0, atol=0)
    assert_close(state["3"], STATE["3"])
    assert_close(state["kinds"], STATE["kinds"], rtol=0, atol=0)
    np.testing.assert_array_equal(state["array"], STATE["array"])
    assert state["empty"][:2] == [{}, ()]
    assert state["empty"][2].shape == (0, 3)
    for name in ("numbers", "pair", "milestones"):
        assert state[name] == STATE[name]
        assert type(state[name]) is type(STATE[name])


def test_weights_are_a_plain_safetensors_file(tmp_path):
    model = MLP((3, 8, 2), generator=seeded())
    Checkpoints(tmp_path).write(3, model.state_dict(), {})
    read = safetensors.torch.load_file(tmp_path / "step-00000003" / "model.safetensors")
    model.load_state_dict(read)


def test_the_manifest_names_sizes_and_hashes(tmp_path):
    Checkpoints(tmp_path).write(3, {"w": torch.ones(2)}, STATE)
    (folder,) = tmp_path.iterdir()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted([*files, "manifest.json"]) == sorted(path.name for path in folder.iterdir())
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.array(["a"]), lambda: 1, 1j])
def test_what_no_json_or_tensor_file_holds_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=r"state.*scheduler.0 is a.* a checkpoint holds"):
        Checkpoints(tmp_path).write(1, {}, {"scheduler": [value]})
    assert not list(tmp_path.rglob("manifest.json"))


def test_the_last_ones_stay_and_what_is_not_ours(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "mine.txt").write_text("stays")
    for step in (1, 2, 3, 4):
        checkpoints.write(step, {"w": torch.ones(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000001",
        "step-00000003",
        "step-00000004",
        "step-notes",
    ]
    assert [path.name for path in (tmp_path / "step-00000001").iterdir()] == ["mine.txt"]


def test_a_damaged_one_does_not_push_out_a_whole_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.write(step, {"w": torch.ones(2)}, {})
    os.truncate(tmp_path / "step-00000002" / "model.safetensors", 10)
    checkpoints.write(3, {"w": torch.ones(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"keep": 0}, ValueError, "keep must be at least 1"),
        ({"generators": (0,)}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        Checkpoints(tmp_path, **arguments)


# --- damage


def truncated(path):
    os.truncate(path, path.stat().st_size - 1)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "no manifest": ("manifest.json", Path.unlink, "no manifest; writing it was interrupted"),
    "half a manifest": ("manifest.json", truncated, "its manifest is damaged"),
    "another manifest": ("manifest.json", lambda path: path.write_text('{"files": {}}'), "not of format 1"),
    "no object": ("manifest.json", lambda path: path.write_text("[" * 100_000), "its manifest is damaged"),
    "truncated weights": ("model.safetensors", truncated, "model.safetensors has .* bytes, not .*: truncated"),
    "truncated state": ("training.json", truncated, "training.json has .* truncated"),
    "one bit": ("training.safetensors", flipped, "the values of training.safetensors are not those"),
    "a missing file": ("training.safetensors", Path.unlink, "training.safetensors is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, case):
    expected = run(tmp_path / "whole", every=3)
    interrupted(tmp_path / "run", 8, every=3)
    name, damage, reason = DAMAGE[case]
    damage(tmp_path / "run" / "step-00000006" / name)
    with pytest.warns(UserWarning, match=rf"checkpoint .*step-00000006 is passed over: .*{reason}"):
        assert_same_run(run(tmp_path / "run", every=3), expected)


def test_without_a_whole_one_the_run_begins_anew(tmp_path):
    expected = run(tmp_path / "whole")
    interrupted(tmp_path / "run", 5)
    truncated(tmp_path / "run" / "step-00000004" / "model.safetensors")
    with pytest.warns(UserWarning, match="step-00000004 is passed over"):
        assert_same_run(run(tmp_path / "run"), expected)


# --- kills


def test_killed_at_every_operation_and_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    # In memory where that is possible: a kill loses nothing that was not synced, and each of 900 syncs takes 20 ms.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        command = [sys.executable, "-m", "tests.fault_points", folder]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = Counter(found["names"])
    assert kinds.keys() == {"write", "fsync", "replace", "unlink", "rmdir", "mkdir"}
    assert kinds["replace"] == 4 * 4  # four checkpoints of four files
    assert kinds["fsync"] == 4 * (4 + 3)  # the files; their names before and after the manifest, and the folder's
    assert found["attempts"] == len(found["names"]) + 3 + 5
    assert found["wrong"] == {}
