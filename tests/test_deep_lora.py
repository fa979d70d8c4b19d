"""The laws of adapters, each on a stack of linear layers, a ViT and a BERT."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint_sequential

from lowdyn import DeepLoraConfig
from lowdyn.lowrank import export_lora
from tests import adapted_models
from tests.adapted_models import MODELS, base_model, inputs_of, output_of
from tests.deep_lora_models import adapted, assert_same_bytes, bytes_of, layers_of, train_a_little

NAMES = list(MODELS)


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


def one_block():
    """The BERT, cut down to its first block."""
    model = base_model("bert")
    del model.bert.encoder.layer[1:]
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, of inductor
@pytest.mark.parametrize(
    ("name", "backend"),
    # Inductor calls a C++ compiler: a stack and one block show whether it takes what aot_eager has traced.
    [
        ("stack", "inductor"),
        ("block", "inductor"),
        ("stack", "aot_eager"),
        ("vit", "aot_eager"),
        ("bert", "aot_eager"),
    ],
)
def test_eager_is_compiled(name, backend):
    torch.compiler.reset()
    name, base = ("bert", one_block()) if name == "block" else (name, None)
    model, inputs = adapted(name, base=base), inputs_of(name)
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
