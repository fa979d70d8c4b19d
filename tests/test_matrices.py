import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from lowdyn import Spectra, Tracker
from lowdyn.observe import weight_matrices
from tests.cases import built, gaussian

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def same(read, expected):
    assert read.shape == tuple(expected.shape)
    assert_close(read(), expected.detach(), rtol=0, atol=0)


def test_convolutions_name_their_reshape():
    model = built(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 5), nn.Conv1d(2, 6, 3, groups=2), nn.ConvTranspose2d(3, 2, (2, 1)), nn.Conv3d(1, 2, 2)
        )
    )
    found = weight_matrices(model)
    shown = {name: (matrix.reading.shown, matrix.shape) for name, matrix in found.items()}
    assert shown == {
        "0": ("out x in·5·5", (4, 75)),
        "1": ("out x in·3", (6, 3)),
        "2": ("in x out·2·1", (3, 4)),
        "3": ("out x in·2·2·2", (2, 8)),
    }
    for index, name in enumerate(found):
        same(found[name], model[index].weight.flatten(1))
    dims, values = Spectra(top=1).begin(model)(0)["singular_values"]
    np.testing.assert_allclose(values[0], np.linalg.svd(model[0].weight.detach().flatten(1), compute_uv=False))
    assert dims == ("layer", "index")


def test_packed_attention_is_split_and_named():
    attention = built(lambda: nn.MultiheadAttention(6, 2))
    found = weight_matrices(nn.Sequential(attention))
    assert list(found) == ["0.q", "0.k", "0.v", "0.out_proj"]
    for place, part in enumerate("qkv"):
        same(found[f"0.{part}"], attention.in_proj_weight[6 * place : 6 * (place + 1)])
    apart = built(lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5))
    found = weight_matrices(apart)
    assert [matrix.shape for matrix in found.values()] == [(6, 6), (6, 4), (6, 5), (6, 6)]
    same(found["k"], apart.k_proj_weight)


@pytest.mark.parametrize("name", ["qkv", "Wqkv", "qkv_proj", "to_qkv"])
def test_packed_linear_layers_are_split(name):
    block = nn.Module()
    packed = built(lambda: nn.Linear(4, 12))
    block.add_module(name, packed)
    block.wide = built(lambda: nn.Linear(4, 12))
    block.shared = nn.Module()
    block.shared.add_module(name, built(lambda: nn.Linear(4, 8)))  # keys and values of fewer heads
    found = weight_matrices(block)
    assert list(found) == [f"{name}.q", f"{name}.k", f"{name}.v", "wide", f"shared.{name}"]
    for place, part in enumerate("qkv"):
        same(found[f"{name}.{part}"], packed.weight[4 * place : 4 * (place + 1)])


@pytest.mark.parametrize("name", ["h.0.attn.qkv_proj", "conv.in_proj", "my_qkv_projection"])
def test_layers_that_hold_something_else_are_one(name):
    block = built(lambda: nn.Linear(4, 12))
    for part in reversed(name.split(".")):
        block = nn.ModuleDict({part: block})
    assert list(weight_matrices(block)) == [name]


def test_gpt2_stores_its_linear_layers_the_other_way():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    block = nn.Module()
    block.c_attn, block.c_proj = built(lambda: Conv1D(12, 4)), built(lambda: Conv1D(5, 4))
    found = weight_matrices(block)
    assert {name: matrix.shape for name, matrix in found.items()} == {
        **dict.fromkeys(("c_attn.q", "c_attn.k", "c_attn.v"), (4, 4)),
        "c_proj": (5, 4),
    }
    same(found["c_attn.k"], block.c_attn.weight.T[4:8])


def test_embeddings_come_only_when_asked_for():
    model = built(lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)))
    assert list(weight_matrices(model)) == ["1"]
    assert list(weight_matrices(model, "0|1")) == ["0", "1"]
    assert weight_matrices(model, "^0$")["0"].reading.shown == "entries x dim"


def test_tied_weights_come_once():
    model = built(lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7), nn.Linear(3, 7)))
    model[1].weight = model[2].weight = model[0].weight
    assert list(weight_matrices(model)) == ["1"]
    assert list(weight_matrices(model, ".")) == ["0"]
    assert list(weight_matrices(model, "2")) == ["2"]


def test_compiled_models_keep_their_names_and_are_read_as_they_change():
    inner = built(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    compiled = torch.compile(inner, backend="eager")
    tracker = Tracker(compiled, Spectra(top=1), every=1)
    for _ in range(2):
        compiled(gaussian(4, 3).float()).square().sum().backward()
        with torch.no_grad():
            for parameter in compiled.parameters():
                parameter -= 0.1 * parameter.grad
        tracker.step()
    trajectory = tracker.trajectory
    assert trajectory["layer"].values.tolist() == ["0", "2"]
    expected = np.linalg.svd(inner[0].weight.detach().double(), compute_uv=False)
    np.testing.assert_allclose(trajectory["singular_values"][-1, 0], expected, rtol=1e-12)
    inner[2] = torch.compile(inner[2], backend="eager")
    assert list(weight_matrices(inner)) == ["0", "2"]


def test_adapters_are_matrices_beside_their_base():
    peft = pytest.importorskip("peft")
    model = built(lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)))
    with torch.random.fork_rng(devices=[]):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    found = weight_matrices(adapted, "lora|base_layer")
    assert {name.removeprefix("base_model.model."): matrix.shape for name, matrix in found.items()} == {
        "0.base_layer": (5, 6),
        "0.lora_A.default": (2, 6),
        "0.lora_B.default": (5, 2),
    }
    tracker = Tracker(adapted, Spectra("lora_B", top=1, reference=1), every=1)
    adapted(gaussian(4, 6).float()).sum().backward()
    with torch.no_grad():
        adapted.base_model.model[0].lora_B["default"].weight -= (
            adapted.base_model.model[0].lora_B["default"].weight.grad
        )
    tracker.step()
    values = tracker.trajectory["singular_values"]
    assert values[0].max() == 0
    assert values[1, 0, 0] > 0


def test_reading_a_parametrized_weight_does_not_change_it():
    model = built(lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 5)), nn.Linear(5, 5)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = weight_matrices(model)
    assert list(found) == ["0", "1"]
    model.eval()
    expected = model[0].weight.detach().clone()
    model.train()
    same(found["0"], expected)
    for name, value in model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)
    assert all(module.training for module in model.modules())
