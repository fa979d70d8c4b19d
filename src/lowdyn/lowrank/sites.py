"""Where a model's layers stand, and what keeps one from being replaced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lowdyn.lowrank.pairs import Layer, is_pair
from lowdyn.observe.matrices import plain_name

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Site:
    """A module, every place (owner, attribute) where the model holds it, and why it must stay, if it must."""

    name: str
    module: nn.Module
    places: tuple[tuple[nn.Module, str], ...]
    obstacle: str | None = None

    @property
    def layer(self) -> Layer:
        """The module, which is a layer."""
        return cast(Layer, self.module)

    def replace(self, module: nn.Module) -> None:
        """Put ``module`` in all of the places."""
        for owner, attribute in self.places:
            owner._modules[attribute] = module  # setattr knows no names such as "0"


def module_sites(model: nn.Module) -> list[Site]:
    """Return every module of ``model`` once, by its first name without the prefixes of wrappers, with its places.

    ValueError for a model already wrapped for several processes, whose buckets hold the weights as they are.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("the model is wrapped in DistributedDataParallel; factorize or merge it first, then wrap it")
    found: dict[nn.Module, tuple[str, list[tuple[nn.Module, str]]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        _, places = found.setdefault(module, (plain_name(name), []))
        owner, _, attribute = name.rpartition(".")
        place = (model.get_submodule(owner), attribute)
        if name and place not in places:  # an owner that itself stands twice is one place
            places.append(place)
    return [Site(name, module, tuple(places)) for module, (name, places) in found.items()]


def layer_sites(model: nn.Module, *, keep_first_last: bool) -> dict[str, Site]:
    """Return the linear and convolutional layers of ``model`` by name, with what keeps each from being replaced.

    ValueError when the model itself is such a layer, which nothing holds that could hold another instead, or when one
    has no shape yet.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    >>> [site.obstacle for site in layer_sites(model, keep_first_last=True).values()]
    ['first layer', None, 'last layer']
    """
    if isinstance(model, Layer):
        raise ValueError(
            f"the model is itself one {type(model).__name__}; put it into an nn.Sequential to factorize it"
        )
    modules = module_sites(model)
    layers = [site for site in modules if isinstance(site.module, Layer)]
    for site in layers:
        if nn.parameter.is_lazy(site.layer.weight):
            raise ValueError(f"{site.name} is lazy and has no shape yet; run a batch through the model first")
    holders = Counter(_memory(p) for site in modules for p in site.module._parameters.values() if p is not None)
    halves = {part: site.name or "the model" for site in modules if is_pair(site.module) for part in site.module}
    sites: dict[str, Site] = {}
    for place, site in enumerate(layers):
        obstacle = _obstacle(site, holders, halves.get(site.layer))
        if obstacle is None and keep_first_last and place in (0, len(layers) - 1):
            obstacle = "first layer" if place == 0 else "last layer"
        sites[site.name] = Site(site.name, site.module, site.places, obstacle)
    return sites


def _obstacle(site: Site, holders: Counter[int], pair: str | None) -> str | None:
    layer, owners = site.layer, [owner for owner, _ in site.places]
    if pair is not None:
        return f"half of the pair {pair}; merge() first"
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"a {type(layer).__name__}, not a plain {'Linear' if isinstance(layer, nn.Linear) else 'Conv2d'}"
    weight = layer._parameters.get("weight")
    if weight is None or not _is_plain(weight):
        return "its weight is computed or spread over devices, not a plain parameter"
    if holders[_memory(weight)] > 1:
        return "its weight is tied to another module's"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"a convolution in {layer.groups} groups"
    if any(getattr(layer, hooks) for hooks in HOOKS):
        return "it has hooks, which would be lost"
    if any(isinstance(owner, nn.TransformerEncoderLayer) for owner in owners):
        return "nn.TransformerEncoderLayer reads its weight"  # on its fast path, in evaluation
    return None


def _is_plain(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and type(weight.data) is torch.Tensor


def _memory(parameter: Tensor) -> int:
    """Return what two tied parameters share: their memory, or on the meta device themselves."""
    return (parameter.data_ptr() if _is_plain(parameter) else 0) or id(parameter)
