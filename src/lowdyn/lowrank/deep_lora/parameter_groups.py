"""The discrepant learning rate, as groups for any torch optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowdyn.arguments import checked_number
from lowdyn.lowrank.deep_lora.layer import DeepLoraLinear


def deep_lora_parameter_groups(model: nn.Module, lr: float, **options: Any) -> list[dict[str, Any]]:
    """Return optimizer groups of all trainable parameters: outer factors at γ ``lr``, all others at ``lr``.

    U and V of a compressed adapter get γ = its ``discrepant_ratio`` (theory: Yaras et al. 2024, Section 3); its
    cores, adapters that are not compressed and ``modules_to_save`` get ``lr``. ``options`` (such as
    ``weight_decay``) go into every group. A scheduler keeps the ratio, for it multiplies every group's rate. With
    γ = 0 U and V stay where they started.

    With Adam keep ``eps`` at 1e-8: the first gradients of the cores are ε^(depth − 1) times those of ΔW, and a larger
    ``eps`` holds them at their start. ValueError if no Deep LoRA adapter of the model is trainable.

    >>> from peft import get_peft_model
    >>> from lowdyn import DeepLoraConfig
    >>> model = get_peft_model(nn.Sequential(nn.Linear(9, 7)), DeepLoraConfig(r=2, target_modules=["0"]))
    >>> [(group["lr"], len(group["params"])) for group in deep_lora_parameter_groups(model, lr=0.5)]
    [(0.5, 1), (0.005, 2)]
    """
    lr = checked_number("lr", lr, at_least=0.0)
    ratios: dict[Tensor, float] = {}
    found = False
    for layer in model.modules():
        if isinstance(layer, DeepLoraLinear):
            for adapter, ratio in layer.outer_ratio.items():
                first, cores, last = layer.factors(adapter)
                ratios |= dict.fromkeys((first.weight, last.weight), ratio)
                found |= any(one.requires_grad for factor in (first, cores, last) for one in factor.parameters())
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no trainable Deep LoRA adapter; make one by "
            "get_peft_model(model, DeepLoraConfig(…)), or load it with is_trainable=True"
        )
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(ratios.get(parameter, 1.0), []).append(parameter)
    return [{"params": members, "lr": ratio * lr, **options} for ratio, members in groups.items() if members]
