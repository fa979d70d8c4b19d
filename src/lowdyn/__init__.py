"""lowdyn: low-dimensional learning dynamics of deep networks. See, predict, use and judge them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowdyn.peft_hook import register_with_peft

__version__ = "0.1.0"

# name -> module that holds it; nothing is imported before it is asked for (PEP 562).
_HOMES = {
    "DeepLinearNetwork": "lowdyn.networks",
    "DeepLoraConfig": "lowdyn.lowrank",
    "DeepMatrixCompletion": "lowdyn.recovery",
    "Descent": "lowdyn.dynamics",
    "gradient_descent": "lowdyn.dynamics",
    "LayerMetrics": "lowdyn.observe",
    "Spectra": "lowdyn.observe",
    "Tracker": "lowdyn.observe",
    "advise_ranks": "lowdyn.lowrank",
    "factorize": "lowdyn.lowrank",
    "layer_metrics": "lowdyn.observe",
    "reduce_network": "lowdyn.dynamics",
    "train": "lowdyn.training",
}

__all__ = [
    "DeepLinearNetwork",
    "DeepLoraConfig",
    "DeepMatrixCompletion",
    "Descent",
    "LayerMetrics",
    "Spectra",
    "Tracker",
    "__version__",
    "advise_ranks",
    "factorize",
    "gradient_descent",
    "layer_metrics",
    "reduce_network",
    "train",
]

if TYPE_CHECKING:
    from lowdyn.dynamics import Descent, gradient_descent, reduce_network
    from lowdyn.lowrank import DeepLoraConfig, advise_ranks, factorize
    from lowdyn.networks import DeepLinearNetwork
    from lowdyn.observe import LayerMetrics, Spectra, Tracker, layer_metrics
    from lowdyn.recovery import DeepMatrixCompletion
    from lowdyn.training import train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lowdyn' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_peft()
