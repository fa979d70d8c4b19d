"""What a Deep LoRA update is, layer by layer, and the rates at which its factors train."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowdyn import DeepLoraConfig
from lowdyn.lowrank import deep_lora_parameter_groups, export_lora
from lowdyn.lowrank.deep_lora import DeepLoraLinear
from tests.adapted_models import base_model, inputs_of, output_of
from tests.deep_lora_models import adapted, assert_same_bytes, bytes_of, layers_of, train_a_little

# --- the update -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    # What each factor must change in an output, three layers, eight, eleven. Of the stack outputs are near 0.2 and
    # change by 0.1; weights at the start of a transformer are small, and its softmax hardly feels the queries'.
    [("stack", 1e-2), ("vit", 1e-4), ("bert", 1e-7)],
)
def test_three_factors_are_there_and_all_count(name, change):
    model, inputs = adapted(name, torch.float64), inputs_of(name, torch.float64)
    before = output_of(model, inputs)
    for layer in layers_of(model):
        first, cores, last = layer.factors("default")
        outputs, columns = layer.base_layer.weight.shape
        assert (first.weight.shape, cores.weight.shape, last.weight.shape) == ((3, columns), (3, 3, 3), (outputs, 3))
        for factor in (first.weight, *cores.weight.unbind(), last.weight):
            with torch.no_grad():
                kept = factor.clone()
                factor.mul_(-2)
                assert float((output_of(model, inputs) - before).abs().max()) > change
                factor.copy_(kept)
    torch.testing.assert_close(output_of(model, inputs), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("compressed", "depth"), [(True, 3), (True, 2), (True, 5), (False, 2), (False, 3), (False, 4)])
def test_it_is_the_product_of_its_factors(compressed, depth, dtype):
    """Output and gradients against W x + W_L … W_1 x written out, with a dense update."""
    model = adapted("stack", dtype, compressed=compressed, depth=depth)
    layer = layers_of(model)[1]
    inputs = torch.randn(4, 16, dtype=dtype, generator=torch.Generator().manual_seed(2))
    factors = [
        one.detach().clone().requires_grad_() for factor in layer.factors("default") for one in factor.parameters()
    ]
    product = factors[0]
    for core in factors[1].unbind() if len(factors) == 3 else ():
        product = core @ product
    expected = inputs @ (layer.base_layer.weight + factors[-1] @ product).T + layer.base_layer.bias
    assert sum(one.shape[0] if one.ndim == 3 else 1 for one in factors) == (depth + 2 if compressed else depth)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(layer(inputs), expected, **tolerance)
    torch.testing.assert_close(layer.get_delta_weight("default"), (factors[-1] @ product).detach(), **tolerance)
    layer(inputs).square().sum().backward()
    expected.square().sum().backward()
    ours = [one.grad for factor in layer.factors("default") for one in factor.parameters()]
    torch.testing.assert_close(ours, [one.grad for one in factors], **tolerance)


@given(
    inputs=st.integers(2, 9),
    outputs=st.integers(2, 9),
    depth=st.integers(2, 5),
    compressed=st.booleans(),
    data=st.data(),
)
def test_every_start_is_orthogonal_at_its_scale(inputs, outputs, depth, compressed, data):
    """ΔW(0) has r singular values ε^L and no other; zero_start has none, and still learns."""
    rank = data.draw(st.integers(1, min(inputs, outputs) - 1))
    options = {"r": rank, "depth": depth, "init_scale": 0.1, "compressed": compressed, "target_modules": ["0"]}
    for zero in (False, True):
        base = nn.Sequential(nn.Linear(inputs, outputs, dtype=torch.float64))
        (layer,) = layers_of(get_peft_model(base, DeepLoraConfig(zero_start=zero, **options)))
        values = torch.linalg.svdvals(layer.get_delta_weight("default"))
        expected = torch.zeros_like(values)
        expected[:rank] = 0.0 if zero else 0.1**depth
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-15)
        layer(torch.eye(inputs, dtype=torch.float64)).sum().backward()
        assert any(one.grad.abs().sum() > 0 for factor in layer.factors("default") for one in factor.parameters())


def test_outer_factors_are_orthonormal_also_beside_half_precision():
    for layer in layers_of(adapted("stack", torch.bfloat16)):
        first, cores, last = layer.factors("default")
        assert first.weight.dtype == cores.weight.dtype == last.weight.dtype == torch.float32
        torch.testing.assert_close(first.weight @ first.weight.T, torch.eye(3), rtol=0, atol=1e-6)
        torch.testing.assert_close(last.weight.T @ last.weight, torch.eye(3), rtol=0, atol=1e-6)
    config = DeepLoraConfig(r=3, target_modules=["0"])
    model = get_peft_model(base_model("stack", torch.bfloat16), config, autocast_adapter_dtype=False)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def test_half_precision_survives_a_file(tmp_path):
    model, inputs = adapted("stack", torch.bfloat16), inputs_of("stack", torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("stack", torch.bfloat16), tmp_path, low_cpu_mem_usage=True).eval()
    assert output_of(loaded, inputs).dtype == torch.bfloat16
    # bfloat16 has 8 bits; the bytes of the adapter, compared below, are the sharp test.
    torch.testing.assert_close(output_of(loaded, inputs), output_of(model, inputs), rtol=1e-2, atol=1e-2)
    assert_same_bytes(get_peft_model_state_dict(loaded), get_peft_model_state_dict(model))
    assert layers_of(loaded)[0].factors("default")[0].weight.dtype == torch.float32


def test_layers_of_transformers_that_hold_the_transpose(tmp_path):
    base = nn.Sequential(Conv1D(8, 12), nn.Tanh(), Conv1D(5, 8)).double()
    model = get_peft_model(copy.deepcopy(base), DeepLoraConfig(r=3, init_scale=0.6, target_modules=["0", "2"]))
    inputs = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = model(inputs)
    export_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(loaded(inputs), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.merge_and_unload()(inputs), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(expected, base(inputs))


def test_patterns_choose_layers_and_ranks():
    model = adapted("bert", target_modules=["query", "value"], layers_to_transform=[1], rank_pattern={"value": 2})
    found = {name: module.r["default"] for name, module in model.named_modules() if isinstance(module, DeepLoraLinear)}
    prefix = "base_model.model.bert.encoder.layer.1.attention.self"
    assert found == {f"{prefix}.query": 3, f"{prefix}.value": 2}


def test_factors_lie_row_by_row():
    assert all(one.is_contiguous() for one in adapted("bert").parameters() if one.requires_grad)


def test_dropout_is_felt_in_training_only():
    model, inputs = adapted("stack", dropout=0.5), inputs_of("stack")
    torch.testing.assert_close(model(inputs), adapted("stack")(inputs), rtol=0, atol=0)
    with torch.random.fork_rng():
        assert not torch.equal(model.train()(inputs), model(inputs))


def test_an_exported_adapter_is_plain(tmp_path):
    model = adapted("bert")
    assert export_lora(model, tmp_path) == tmp_path
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert sum("lora_A.weight" in key for key in weights) == len(layers_of(model))
    assert not any("deep" in key for key in weights)
    assert {key for key in weights if "lora" not in key} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


# --- the discrepant rate --------------------------------------------------------------------------------------


def test_groups_hold_every_trainable_parameter_once():
    model = adapted("vit", discrepant_ratio=0.25)
    groups = deep_lora_parameter_groups(model, lr=0.2, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.2, 0.1), (0.05, 0.1)]
    inner, outer = (set(group["params"]) for group in groups)
    assert outer == {factor.weight for layer in layers_of(model) for factor in layer.factors("default")[::2]}
    assert inner | outer == {one for one in model.parameters() if one.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(inner | outer)


def test_outer_factors_rest_without_a_rate_and_one_group_does_without_compression():
    model = adapted("stack", discrepant_ratio=0.0)
    before = bytes_of(model)
    train_a_little(model, "stack")
    moved = {key.split(".")[-3] for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {"deep_lora_C"}
    assert len(deep_lora_parameter_groups(adapted("stack", compressed=False), lr=0.1)) == 1


def test_groups_need_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="Sequential has no trainable Deep LoRA adapter"):
        deep_lora_parameter_groups(base_model("stack"), lr=0.1)
    adapted("stack").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_trainable=True"):
        deep_lora_parameter_groups(PeftModel.from_pretrained(base_model("stack"), tmp_path), lr=0.1)
