"""The three models with a Deep LoRA adapter, trained a little, and their tensors byte by byte."""

import torch
from peft import get_peft_model

from lowdyn import DeepLoraConfig
from lowdyn.lowrank import deep_lora_parameter_groups
from lowdyn.lowrank.deep_lora import DeepLoraLinear
from tests.adapted_models import MODELS, base_model, inputs_of, output_of


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
