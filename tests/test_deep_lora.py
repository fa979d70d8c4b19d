"""The laws of adapters, each on a stack of linear layers, a ViT and a BERT; and what a Deep LoRA update is."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential
from transformers.pytorch_utils import Conv1D

from lowdyn import DeepLoraConfig
from lowdyn.lowrank import deep_lora_parameter_groups, export_lora
from lowdyn.lowrank.deep_lora import DeepLoraLinear
from tests import adapted_models
from tests.adapted_models import MODELS, base_model, inputs_of, output_of

NAMES = list(MODELS)


def adapted(name, dtype=torch.float32, base=None, **options):
    """The model `name` with an adapter that is felt: ε = 0.6, so that ΔW(0) = 0.216 times orthonormal rows."""
    base = base_model(name, dtype) if base is None else base
    _, targets, head = MODELS[name]
    settings = {"r": 3, "init_scale": 0.6, "target_modules": targets, "modules_to_save": head, **options}
    return get_peft_model(base, DeepLoraConfig(**settings)).eval()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, DeepLoraLinear)]


def bytes_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bytes(state, other):
    assert state.keys() == other.keys()
    torch.testing.assert_close(dict(state), dict(other), rtol=0, atol=0, equal_nan=True)


def train_a_little(model, name, steps=2):
    optimizer = torch.optim.AdamW(deep_lora_parameter_groups(model, lr=0.05))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        output_of(model, inputs_of(name)).square().sum().backward()
        optimizer.step()
    return model.eval()


# --- the laws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
class TestLaws:
    def test_only_the_adapter_and_the_head_train(self, name):
        model = adapted(name)
        before = bytes_of(model)
        train_a_little(model, name)
        moved = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])]
        trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
        assert sorted(moved) == sorted(trainable)
        assert all("deep_lora_" in key or "modules_to_save" in key for key in trainable)
        assert len(trainable) == 3 * len(layers_of(model)) + (0 if MODELS[name][2] is None else 2)

    def test_disabled_is_the_base_bit_for_bit(self, name):
        model, inputs = train_a_little(adapted(name), name), inputs_of(name)
        with model.disable_adapter():
            torch.testing.assert_close(output_of(model, inputs), output_of(base_model(name), inputs), rtol=0, atol=0)
        assert not torch.equal(output_of(model, inputs), output_of(base_model(name), inputs))

    @pytest.mark.parametrize(
        ("dtype", "bound"),
        # Outputs are of order one: merged weights are rounded to the base's precision once, eps is 6e-8, 2e-16, 4e-3.
        [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 3e-2)],
    )
    def test_merged_is_adapted_to_rounding(self, name, dtype, bound):
        inputs = inputs_of(name, dtype)
        model = train_a_little(adapted(name, dtype), name) if dtype == torch.float32 else adapted(name, dtype)
        expected = output_of(model, inputs)
        merged = model.merge_and_unload(safe_merge=True)
        assert not layers_of(merged)
        assert output_of(merged, inputs).dtype == dtype
        torch.testing.assert_close(output_of(merged, inputs), expected, rtol=0, atol=bound)

    def test_merging_twice_is_merging_once(self, name):
        model = adapted(name)
        model.merge_adapter()
        once = bytes_of(model)
        with pytest.warns(UserWarning, match="already merged"):
            model.merge_adapter(safe_merge=True)
        assert_same_bytes(bytes_of(model), once)
        with pytest.warns(UserWarning, match="already merged"):
            merged = model.merge_and_unload()
        assert_same_bytes(bytes_of(merged), bytes_of(adapted(name).merge_and_unload()))

    def test_unmerging_gives_the_base_back_to_rounding(self, name):
        model, inputs = adapted(name, torch.float64), inputs_of(name, torch.float64)
        model.merge_adapter()
        with model.disable_adapter():
            expected = output_of(base_model(name, torch.float64), inputs)
            torch.testing.assert_close(output_of(model, inputs), expected, rtol=1e-13, atol=1e-14)

    def test_a_broken_adapter_is_not_merged_anywhere(self, name):
        model = adapted(name)
        with torch.no_grad():
            layers_of(model)[-1].deep_lora_C["default"].weight[1, 0, 0] = torch.nan  # the first layers are sound
        before = bytes_of(model)
        for merge in (model.merge_adapter, model.merge_and_unload, layers_of(model)[-1].merge):
            with pytest.raises(ValueError, match=r"NaN or infinity in .*merged"):
                merge(safe_merge=True)
            assert_same_bytes(bytes_of(model), before)

    def test_what_is_saved_is_what_is_loaded(self, name, tmp_path):
        model, inputs = train_a_little(adapted(name), name), inputs_of(name)
        model.save_pretrained(tmp_path)
        saved = get_peft_model_state_dict(model)
        for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True, "adapter_name": "another"}):
            loaded = PeftModel.from_pretrained(base_model(name), tmp_path, **options).eval()
            assert_same_bytes(get_peft_model_state_dict(loaded, adapter_name=next(iter(loaded.peft_config))), saved)
            # Tensors mapped from a file lie otherwise in memory, and products may be added up in another order.
            torch.testing.assert_close(output_of(loaded, inputs), output_of(model, inputs), rtol=1e-6, atol=1e-6)
            assert any(one.requires_grad for one in loaded.parameters()) == ("is_trainable" in options)
        config = loaded.peft_config["another"]
        assert (config.r, config.depth, config.init_scale, config.peft_type) == (3, 3, 0.6, "DEEP_LORA")

    @pytest.mark.filterwarnings("ignore:the head 'classifier' will not be trained")
    def test_several_adapters(self, name):
        inputs = inputs_of(name)
        first, second = (adapted(name, seed=seed, modules_to_save=None) for seed in (0, 1))
        one, other = output_of(first, inputs), output_of(second, inputs)
        model = adapted(name, modules_to_save=None)
        model.add_adapter("other", DeepLoraConfig(**{**model.peft_config["default"].to_dict(), "seed": 1}))
        torch.testing.assert_close(output_of(model, inputs), one, rtol=0, atol=0)
        model.set_adapter("other")
        torch.testing.assert_close(output_of(model, inputs), other, rtol=0, atol=0)
        assert all(".other" in key for key, one in model.named_parameters() if one.requires_grad)
        model.base_model.set_adapter(["default", "other"])
        both = output_of(model, inputs)
        model.merge_adapter()
        torch.testing.assert_close(output_of(model, inputs), both, rtol=1e-5, atol=1e-5)
        model.unmerge_adapter()
        model.set_adapter("default")
        model.delete_adapter("other")
        torch.testing.assert_close(output_of(model, inputs), one, rtol=1e-5, atol=1e-5)
        assert not any(".other" in key for key in model.state_dict())

    def test_the_same_seed_is_the_same_start(self, name, nothing_global_changes):
        assert_same_bytes(adapted(name).state_dict(), adapted(name).state_dict())
        other = adapted(name, seed=1).state_dict()
        ours = {key: tensor for key, tensor in adapted(name).state_dict().items() if "deep_lora_" in key}
        assert not any(torch.equal(tensor, other[key]) for key, tensor in ours.items())


def test_the_exported_adapter_needs_no_lowdyn(tmp_path):
    """All three models in one other process: outputs within 1e-6 of the largest."""
    for name in NAMES:
        inputs = inputs_of(name)
        model = train_a_little(adapted(name, rank_pattern={MODELS[name][1][0]: 2}), name)
        export_lora(model, tmp_path / name)
        save_file(base_model(name).state_dict(), tmp_path / f"{name}.base")
        save_file({"inputs": inputs, "outputs": output_of(model, inputs).detach()}, tmp_path / f"{name}.data")
    script = f"""
import sys, warnings
warnings.filterwarnings("error")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
import torch
from peft import PeftModel
from safetensors.torch import load_file
sys.path.insert(0, {str(tmp_path)!r})
from adapted_models import base_model, output_of
assert "lowdyn" not in sys.modules
for name in {NAMES!r}:
    base = base_model(name)
    base.load_state_dict(load_file(f"{tmp_path}/{{name}}.base"))
    data = load_file(f"{tmp_path}/{{name}}.data")
    model = PeftModel.from_pretrained(base, f"{tmp_path}/{{name}}").eval()
    off = (output_of(model, data["inputs"]) - data["outputs"]).abs().max() / data["outputs"].abs().max()
    print(name, float(off))
assert "lowdyn" not in sys.modules
"""
    (tmp_path / "adapted_models.py").write_text(Path(adapted_models.__file__).read_text("utf-8"), "utf-8")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    off = dict(line.split() for line in done.stdout.splitlines())
    assert off.keys() == set(NAMES)
    assert all(float(value) < 1e-6 for value in off.values()), off


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, of inductor
@pytest.mark.parametrize(
    ("name", "backend"),
    # Inductor calls a C++ compiler: once is enough to see that it takes what aot_eager has traced.
    [("stack", "inductor"), ("stack", "aot_eager"), ("vit", "aot_eager"), ("bert", "aot_eager")],
)
def test_eager_is_compiled(name, backend):
    torch.compiler.reset()
    model, inputs = adapted(name), inputs_of(name)
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=name == "stack")
    torch.testing.assert_close(output_of(compiled, inputs), output_of(model, inputs), rtol=1e-5, atol=1e-6)
    for one in (model, compiled):
        output_of(one, inputs).square().sum().backward()
    gradients = [[p.grad for p in one.parameters() if p.requires_grad] for one in (model, compiled)]
    assert all(gradient is not None for gradient in gradients[1])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients, base_calls = [], []
    for checkpointing in (False, True):
        model = adapted(name).train()
        if checkpointing:
            base = model.get_base_model()
            enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
            enable()
        calls = []
        layers_of(model)[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            output_of(model, inputs_of(name)).square().sum().backward()
        base_calls.append(len(calls))
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert base_calls == [1, 2]  # with checkpoints a layer goes forward again
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)
    assert all(gradient is not None for gradient in gradients[1])


def test_checkpoints_around_layers_of_a_stack_change_no_gradient():
    gradients = []
    for pieces in (None, 3):
        model, inputs = adapted("stack"), inputs_of("stack").requires_grad_()
        layers = model.get_base_model()
        output = (
            layers(inputs) if pieces is None else checkpoint_sequential(layers, pieces, inputs, use_reentrant=False)
        )
        output.square().sum().backward()
        gradients.append([inputs.grad, *(one.grad for one in model.parameters() if one.requires_grad)])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


# --- the update -----------------------------------------------------------------------------------------------


def test_three_factors_are_there_and_all_count():
    model = adapted("stack")
    layer, inputs = layers_of(model)[0], inputs_of("stack")
    first, cores, last = layer.factors("default")
    assert (first.weight.shape, cores.weight.shape, last.weight.shape) == ((3, 12), (3, 3, 3), (16, 3))
    before = output_of(model, inputs)
    for factor in (first.weight, *cores.weight.unbind(), last.weight):
        with torch.no_grad():
            kept = factor.clone()
            factor.mul_(-2)
            # The outputs are near 0.2 and change by 0.1: the wider this is, the more it asks.
            assert not torch.allclose(output_of(model, inputs), before, atol=1e-2)
            factor.copy_(kept)


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
