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
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from lowdyn import train
from lowdyn.checkpoints import Checkpoints
from lowdyn.networks import MLP
from lowdyn.training import Minibatches
from tests.cases import built, gaussian, seeded

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")
pytestmark = pytest.mark.usefixtures("nothing_global_changes")

X = gaussian(50, 3, dtype=torch.float32)
Y = (X[:, 0] > 0).long()
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


class Stop(Exception):
    """An interruption."""


def run(folder, *, epochs=3, every=None, stop=None, rate="cosine", loader=None, keep=2, model=None, **options):
    """Train a small model; after `stop` updates the run is interrupted. Returns (model, curve)."""
    model = model or MLP((3, 8, 2), generator=seeded())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    schedules = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12),
        "steps": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5]),
        "cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12),
        "plateau": lambda: Plateau(optimizer),
        "sequence": lambda: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer),
                torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3]),
            ],
            [4],
        ),
        None: lambda: None,
    }
    if stop is not None:
        options["tracker"] = Interruption(stop)
    checkpoints = Checkpoints(folder, every, keep, options.pop("generators", ()))
    loader = loader or Minibatches(X, Y, 16, seeded(1))
    curve = train(
        model,
        loader,
        optimizer=optimizer,
        epochs=epochs,
        scheduler=schedules[rate](),
        checkpoints=checkpoints,
        **options,
    )
    return model, curve


class Plateau:
    """ReduceLROnPlateau on values of its own."""

    def __init__(self, optimizer):
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

    def step(self):
        self.scheduler.step(1.0)

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)


class Interruption:
    def __init__(self, at):
        self.left = at

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise Stop


def interrupted(folder, stop, **options):
    with pytest.raises(Stop):
        run(folder, stop=stop, **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(first, second):
    for parameter, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert_close(parameter, other, rtol=0, atol=0)
    assert first[1].identical(second[1])


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


# --- resuming


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11, 12])
@pytest.mark.parametrize("every", [None, 1, 3])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, every, stop):
    expected = run(tmp_path / "whole", every=every)
    interrupted(tmp_path / "run", stop, every=every)
    assert_same_run(run(tmp_path / "run", every=every), expected)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_checkpoints_change_nothing(tmp_path):
    expected = MLP((3, 8, 2), generator=seeded())
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.05)
    curve = train(expected, Minibatches(X, Y, 16, seeded(1)), optimizer=optimizer, epochs=3)
    assert_same_run(run(tmp_path, every=1, rate=None), (expected, curve))


@pytest.mark.parametrize("rate", ["steps", "cycle", "plateau", "sequence", None])
def test_every_schedule_goes_on(tmp_path, rate):
    expected = run(tmp_path / "whole", every=2, rate=rate)
    interrupted(tmp_path / "run", 5, every=2, rate=rate)
    assert_same_run(run(tmp_path / "run", every=2, rate=rate), expected)


def test_a_data_loader_replays_its_order(tmp_path):
    def loader(batch_size=8):
        return DataLoader(TensorDataset(X, Y), batch_size, shuffle=True, generator=seeded(2))

    expected = run(tmp_path / "whole", loader=loader(), rate=None, every=3)
    interrupted(tmp_path / "run", 10, loader=loader(), rate=None, every=3)
    assert_same_run(run(tmp_path / "run", loader=loader(), rate=None, every=3), expected)


def test_a_data_set_that_draws_itself_is_replayed(tmp_path):
    noise = seeded(5)

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, place):
            return X[place] + torch.randn(3, generator=noise), Y[place]

    results = []
    for stop in (None, 10):
        noise.manual_seed(5)
        options = {"rate": None, "every": 3, "generators": (noise,)}
        folder = tmp_path / str(stop)
        if stop:
            interrupted(folder, stop, loader=DataLoader(Noisy(), 8, generator=seeded()), **options)
            noise.manual_seed(99)
        results.append(run(folder, loader=DataLoader(Noisy(), 8, generator=seeded()), **options))
    assert_same_run(*results)


def test_dropout_goes_on_when_its_generator_is_named(tmp_path):
    def dropout():
        return built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)))

    options = {"every": 3, "generators": (torch.default_generator,)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = run(tmp_path / "whole", model=dropout(), **options)
        torch.manual_seed(3)
        interrupted(tmp_path / "run", 8, model=dropout(), **options)
        torch.manual_seed(4)
        resumed = run(tmp_path / "run", model=dropout(), **options)
    assert_same_run(resumed, expected)


def test_buffers_and_tied_weights_go_on(tmp_path):
    def tied():
        model = built(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 2)))
        model[2].weight = model[0].weight
        return model

    expected = run(tmp_path / "whole", model=tied(), every=3)
    interrupted(tmp_path / "run", 8, model=tied(), every=3)
    resumed = run(tmp_path / "run", model=tied(), every=3)
    assert_same_run(resumed, expected)
    assert_close(resumed[0].state_dict(), expected[0].state_dict(), rtol=0, atol=0)
    assert resumed[0][2].weight is resumed[0][0].weight


def test_what_has_a_state_gets_it_back(tmp_path):
    class Steps:
        seen = 0

        def step(self):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    first, second = Steps(), Steps()
    run(tmp_path, epochs=1, tracker=first)
    run(tmp_path, epochs=2, tracker=second)
    assert (first.seen, second.seen) == (4, 8)


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(tmp_path):
    first, curve = run(tmp_path, epochs=2, rate=None)
    before = contents(tmp_path)
    done = []
    again = run(tmp_path, epochs=2, rate=None, on_epoch=done.append)
    assert_same_run(again, (first, curve))
    assert done == []
    assert contents(tmp_path) == before
    longer = run(tmp_path, epochs=3, rate=None, on_epoch=done.append)
    assert done == [3]
    assert_same_run(longer, run(tmp_path / "whole", epochs=3, rate=None))


def test_accumulated_gradients_go_on(tmp_path):
    from accelerate import Accelerator

    options = {"every": 2, "rate": None, "loader": None}
    results = []
    for stop in (None, 5):
        folder = tmp_path / str(stop)
        options["loader"] = Minibatches(X, Y, 6, seeded(1))
        if stop:
            interrupted(folder, stop, accelerator=Accelerator(gradient_accumulation_steps=2), **options)
            options["loader"] = Minibatches(X, Y, 6, seeded(1))
        results.append(run(folder, accelerator=Accelerator(gradient_accumulation_steps=2), **options))
    assert_same_run(*results)


# --- refusals


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"sampler": SubsetRandomSampler(range(9))}, {"sampler": WeightedRandomSampler(Y, 9)}]
)
def test_an_order_that_cannot_be_repeated_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"draws from torch's global generator.*pass it, or its sampler, generator="):
        run(tmp_path, loader=DataLoader(TensorDataset(X, Y), 8, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": MLP((3, 9, 2), generator=seeded())}, "is of another run: .*size mismatch"),
        ({"rate": None}, "has scheduler that this run lacks"),
        ({"generators": (seeded(),)}, "has 1 generators that this run lacks, and lacks 2 generators"),
        ({"loader": [(X, Y)]}, "has 1 generators that this run lacks"),
        ({"epochs": 1}, "has completed 2 epochs, epochs=1 are fewer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, options, message):
    run(tmp_path, epochs=2)
    with pytest.raises(ValueError, match=f"the checkpoint of step 8 in .*{message}"):
        run(tmp_path, **{"epochs": 3, **options})


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
