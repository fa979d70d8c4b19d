"""A trained Deep LoRA adapter as a standard LoRA adapter, for everybody who has PEFT and not lowdyn."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lowdyn.files import replace_atomically
from lowdyn.lowrank.deep_lora.config import DeepLoraConfig
from lowdyn.lowrank.deep_lora.factors import collapsed
from lowdyn.lowrank.deep_lora.layer import DeepLoraLinear
from lowdyn.lowrank.deep_lora.registration import PREFIX

if TYPE_CHECKING:
    from peft import PeftModel


def export_lora(model: PeftModel, folder: str | os.PathLike[str], adapter_name: str = "default") -> Path:
    """Write the adapter as a LoRA adapter of rank r and alpha = r into ``folder``; return the folder.

    The product of the factors collapses to a pair B·A of the same rank, so ``PeftModel.from_pretrained(base,
    folder)`` gives the same outputs up to rounding, without lowdyn. A is C_L … C_1 Vᵀ (or W_{L−1} … W_1), B is U
    (or W_L); ``modules_to_save`` go along. Files of a LoRA adapter in ``folder`` are replaced. ValueError if
    the model has no Deep LoRA adapter of that name.

    >>> import tempfile
    >>> from peft import get_peft_model
    >>> from torch import nn
    >>> model = get_peft_model(nn.Sequential(nn.Linear(9, 7)), DeepLoraConfig(r=2, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in export_lora(model, folder).iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, DeepLoraConfig):
        names = [name for name, one in getattr(model, "peft_config", {}).items() if isinstance(one, DeepLoraConfig)]
        raise ValueError(f"no Deep LoRA adapter {adapter_name!r}; this model has {', '.join(names) or 'none'}")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DeepLoraLinear) and adapter_name in module.r
    }
    weights: dict[str, Tensor] = {}
    for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items():
        if f".{PREFIX}" not in key:  # modules_to_save
            weights[key] = tensor.contiguous()
    for name, layer in layers.items():
        factors = layer.factors(adapter_name)
        for letter, matrix in zip("AB", collapsed(*factors), strict=True):
            weights[f"{name}.lora_{letter}.weight"] = matrix.to(factors[0].weight.dtype).contiguous()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to("cpu") for name, tensor in weights.items()}
    replace_atomically(place / SAFETENSORS_WEIGHTS_NAME, save(weights, metadata={"format": "pt"}))
    _as_lora(config, layers.values()).save_pretrained(str(place))
    return place


def _as_lora(config: Any, layers: Iterable[DeepLoraLinear]) -> LoraConfig:
    return LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        lora_dropout=config.dropout,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.rank_pattern),
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )
