"""Low-rank training and adaptation of real networks; nothing is imported before it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# name -> module that holds it; Deep LoRA needs peft and transformers, which the others do not.
_HOMES = {
    "DeepLoraConfig": "lowdyn.lowrank.deep_lora",
    "deep_lora_parameter_groups": "lowdyn.lowrank.deep_lora",
    "export_lora": "lowdyn.lowrank.deep_lora",
}

__all__ = ["DeepLoraConfig", "deep_lora_parameter_groups", "export_lora"]

if TYPE_CHECKING:
    from lowdyn.lowrank.deep_lora import DeepLoraConfig, deep_lora_parameter_groups, export_lora


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lowdyn.lowrank' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
