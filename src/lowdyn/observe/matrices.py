"""The weight matrices of a model by name: what spectra are taken of."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn

from lowdyn.networks.linear import Factor

# What DDP puts in front, and torch.compile wherever it wraps; a submodule of one's own named "module" stays.
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)(?:\.|$))+|(?<=\.)_orig_mod(?:\.|$)")


def plain_name(name: str) -> str:
    """Return a module's name without the prefixes of DDP and torch.compile.

    >>> plain_name("_orig_mod.module.encoder.0")
    'encoder.0'
    >>> plain_name("block.module.0")
    'block.module.0'
    """
    return WRAPPERS.sub("", name).rstrip(".")


def select(names: list[str], layers: str | None, what: str) -> list[str]:
    """Return the ``names`` in which the pattern ``layers`` is found; ValueError with the candidates if none."""
    chosen = names if layers is None else [name for name in names if re.search(layers, name)]
    if not chosen:
        held = ", ".join(names) if names else f"no {what} at all"
        raise ValueError(f"no {what} matches {layers!r}: this model has {held}; pass layers=… to choose among them")
    return chosen


def weight_matrices(model: nn.Module, layers: str | None = None) -> dict[str, Callable[[], Tensor]]:
    """Return, per linear layer whose name matches, a function that reads its weight (…, out, in) of the moment.

    Read from the parameters, detached, so that no hook is needed. ValueError when no name matches.

    >>> sorted(weight_matrices(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0', '2']
    """
    modules = {
        plain_name(name) or "self": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Factor)
    }
    return {name: _reader(modules[name]) for name in select(list(modules), layers, "linear layer")}


def _reader(module: nn.Module) -> Callable[[], Tensor]:
    def read() -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    return read
