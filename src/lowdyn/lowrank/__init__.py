"""Low-rank training and adaptation of real networks; Deep LoRA is not imported before it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowdyn.lowrank.factorize import factorize, merge
from lowdyn.lowrank.ranks import advise_ranks

__all__ = ["DeepLoraConfig", "advise_ranks", "deep_lora_parameter_groups", "export_lora", "factorize", "merge"]

_DEEP_LORA = ("DeepLoraConfig", "deep_lora_parameter_groups", "export_lora")  # needs peft and transformers

if TYPE_CHECKING:
    from lowdyn.lowrank.deep_lora import DeepLoraConfig, deep_lora_parameter_groups, export_lora


def __getattr__(name: str) -> Any:
    if name not in _DEEP_LORA:
        raise AttributeError(f"module 'lowdyn.lowrank' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module("lowdyn.lowrank.deep_lora"), name)
