"""W = BA in any torch model: layers replaced by pairs of plain layers, and put together again."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_count, checked_matrix, checked_number
from lowdyn.lowrank.cost import Loss, StepCost, step_costs
from lowdyn.lowrank.pairs import is_pair, low_rank_pair, matrix_of, merged, worthwhile_rank
from lowdyn.lowrank.sites import Site, layer_sites, module_sites
from lowdyn.lowrank.table import Table, ratio
from lowdyn.observe.matrices import select

FEW = 0.05  # of the parameters: below it, factorizing changes little


class RankTable(Protocol):
    """What carries a rank for each layer by name, as :func:`advise_ranks` and :func:`factorize` return it."""

    @property
    def ranks(self) -> Mapping[str, int]:
        """Rank by the name of the layer."""
        ...


@dataclass(frozen=True)
class FactorizedLayer:
    """A layer that was asked for: its rank as a pair, or why it was ``kept`` as it is.

    ``shape`` is (out, in) of the matrix, of a convolution (out, in · kernel height · kernel width). ``energy_lost`` is
    the share of ‖W‖²_F that was dropped, None where the factors were drawn. ``weights`` before and after
    count entries, which are also the multiply-adds for each sample (of a convolution: for each position of its output).
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    energy_lost: float | None
    weights: tuple[int, int]
    kept: str | None


@dataclass(frozen=True)
class FactorizationTable(Table):
    """What :func:`factorize` did, layer by layer, and to the model as a whole, before and after.

    ``parameters`` counts the model's; ``cost`` holds a training step's operations, peak memory and seconds where a
    loss was given to measure by. Prints as a table; ``pandas.DataFrame(table.rows())`` is one.
    """

    layers: tuple[FactorizedLayer, ...]
    parameters: tuple[int, int]
    cost: tuple[StepCost, StepCost] | None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by name of the layers that are pairs now: ``factorize(twin, table)`` gives a twin the same form."""
        return {layer.name: layer.rank for layer in self.layers if layer.rank is not None}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a layer."""
        return [
            {
                "layer": layer.name,
                "shape": layer.shape,
                "rank": layer.rank,
                "energy lost": layer.energy_lost,
                "weights before": layer.weights[0],
                "after": layer.weights[1],
                "kept because": layer.kept,
            }
            for layer in self.layers
        ]

    def caption(self) -> str:
        """Return the model's parameters, and what a step costs if that was measured."""
        lines = [ratio("parameters", *self.parameters)]
        if self.cost is not None:
            before, after = self.cost
            lines += [
                ratio("GFLOPs a step", before.flops / 1e9, after.flops / 1e9),
                ratio("peak memory of a step", before.peak_bytes / 2**20, after.peak_bytes / 2**20, " MiB"),
                ratio("time of a step", before.seconds * 1e3, after.seconds * 1e3, " ms"),
            ]
        return "\n".join(lines)


def factorize(
    model: nn.Module,
    ranks: int | float | Mapping[str, int] | RankTable,
    *,
    layers: str | None = None,
    keep_first_last: bool = True,
    generator: torch.Generator | None = None,
    loss: Loss | None = None,
) -> FactorizationTable:
    """Replace layers of ``model``, in place, by pairs of plain layers W = BA; return what was done as a table.

    Every ``nn.Linear`` becomes an ``nn.Sequential`` of two (A without bias, then B with the layer's own bias
    parameter), every ``nn.Conv2d`` one of the same kernel into ``rank`` channels and a 1 x 1 one: "fc.weight" becomes
    "fc.0.weight" and "fc.1.weight". Everything else stays, and the state dict is plain: a twin of the model takes it
    after ``factorize(twin, table)``. **Build the optimizer afterwards**: one built before holds the old weights.

    ``ranks`` is one rank for all; or a fraction f in (0, 1), the share of each layer's multiply-adds to keep,
    r = ⌊f · mn/(m + n)⌋, at least 1: the model's first and last layer (in the order of ``named_modules``) are then kept
    unless ``keep_first_last`` is False. Or it gives ranks by name, a mapping or a table of :func:`advise_ranks` or of
    this function, and says itself which layers. ``layers`` is a pattern searched in the layers' names.

    The factors are those of the truncated SVD of the present weight, singular values split evenly between them; from an
    advice that knows the subspace V that learning used, those of W V Vᵀ, which hardly changes what a model near its
    start does; with ``generator`` they are drawn from scratch, of the size of torch's own start. The global generator
    is never touched.

    A layer is replaced only where multiply-adds fall, r < mn/(m + n), and where the model goes on working: one that
    is tied to another, has hooks, is computed (weight_norm), grouped, a subclass, or half of a pair already, is kept;
    the table says why. One that stands in several places is replaced in all of them. What cannot be seen from outside
    is an owner that reads ``layer.weight`` in its own forward: it fails at the first batch; leave such a layer out.

    ``loss``, a function from a model to its scalar loss on a batch, asks for a training step to be measured before and
    after (:func:`lowdyn.lowrank.cost.step_costs`).

    ValueError, and the model as it was, when no layer matches, a name in ``ranks`` is unknown, a rank is none that a
    layer can have, a weight has NaN or no values, or no layer would be replaced. A warning when the pairs held less
    than 5 % of the parameters.

    >>> from lowdyn.networks import MLP
    >>> model = MLP((64, 100, 100, 10), generator=torch.Generator().manual_seed(0))
    >>> table = factorize(model, ranks=10)
    >>> print(table)
    layer    shape      rank  energy lost  weights before  after  kept because
    ───────  ─────────  ────  ───────────  ──────────────  ─────  ────────────
    hidden1  100 x 64                               6 400  6 400  first layer
    hidden2  100 x 100    10       0.6877          10 000  2 000
    output   10 x 100                               1 000  1 000  last layer
    parameters 17 610 -> 9 610 (0.546)
    >>> list(model.state_dict())[2:5]
    ['hidden2.0.weight', 'hidden2.1.weight', 'hidden2.1.bias']
    """
    by_name = isinstance(ranks, Mapping) or hasattr(ranks, "ranks")
    sites = layer_sites(model, keep_first_last=keep_first_last and not by_name)
    names = select(list(sites), layers, "linear or convolutional layer")
    asked = _ranks_by_name(ranks, {name: sites[name] for name in names}, list(sites))
    active = getattr(ranks, "active", {})
    entries: list[FactorizedLayer] = []
    pairs: dict[str, nn.Sequential] = {}
    for name, rank in asked.items():
        entry, pair = _entry(sites[name], rank, active.get(name), generator)
        entries.append(entry)
        if pair is not None:
            pairs[name] = pair
    if not pairs:
        reasons = "; ".join(f"{entry.name}: {entry.kept}" for entry in entries)
        raise ValueError(f"no layer was factorized ({reasons}); pass other ranks=, layers= or keep_first_last=")
    before = _count(model)
    replaced = sum(entry.weights[0] for entry in entries if entry.rank is not None)
    if replaced < FEW * before:
        warnings.warn(
            f"the layers factorized ({', '.join(pairs)}) held {replaced / before:.1%} of the model's parameters; "
            "pass layers= or keep_first_last=False to reach more",
            stacklevel=2,
        )
    dense = copy.deepcopy(model) if loss is not None else None
    for name, pair in pairs.items():
        sites[name].replace(pair)
    cost = None
    if loss is not None and dense is not None:
        try:
            costs = step_costs({"before": dense, "after": model}, loss)
        except BaseException:
            for name in pairs:
                sites[name].replace(sites[name].module)
            raise
        cost = costs["before"], costs["after"]
    return FactorizationTable(tuple(entries), (before, _count(model)), cost)


def merge(model: nn.Module, layers: str | None = None) -> list[str]:
    """Replace pairs W = BA of ``model``, in place, by the one layer each amounts to; return their names.

    The inverse of :func:`factorize`: the outputs stay, up to rounding, and the state dict has the dense model's names
    again. A pair is an ``nn.Sequential`` of two plain layers, the first without bias, with fewer channels between
    them than outside. Build the optimizer afterwards. ValueError when no pair's name matches ``layers``.

    >>> model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = factorize(model, ranks=3)
    >>> merge(model), model[2]
    (['2'], Linear(in_features=9, out_features=8, bias=True))
    """
    sites = {site.name: site for site in module_sites(model) if site.places and is_pair(site.module)}
    names = select(list(sites), layers, "pair")
    for name in names:
        pair = sites[name].module
        assert is_pair(pair)
        sites[name].replace(merged(pair))
    return names


def _ranks_by_name(ranks: Any, sites: Mapping[str, Site], known: list[str]) -> dict[str, int]:
    ranks = getattr(ranks, "ranks", ranks)
    if isinstance(ranks, Mapping):
        for name in ranks:
            if name not in known:
                raise ValueError(f"ranks names {name!r}, which is no layer of this model; it has {', '.join(known)}")
        chosen = {name: checked_count(f"rank of {name}", ranks[name], at_least=1) for name in sites if name in ranks}
        for name, rank in chosen.items():
            rows, columns = matrix_of(sites[name].layer).shape
            if rank >= min(rows, columns):
                raise ValueError(f"rank of {name} must be below min(out, in) = {min(rows, columns)}, got {rank}")
        if not chosen:
            raise ValueError(f"ranks names {', '.join(ranks)}, layers= asks for {', '.join(sites)}: none is in both")
        return chosen
    if isinstance(ranks, Real) and not isinstance(ranks, Integral):
        fraction = checked_number("ranks, as a fraction,", ranks, at_least=0.0, below=1.0)
        if fraction == 0.0:
            raise ValueError("ranks, as a fraction, must be above 0, got 0.0")
        shapes = {name: matrix_of(site.layer).shape for name, site in sites.items()}
        return {name: max(1, math.floor(fraction * m * n / (m + n))) for name, (m, n) in shapes.items()}
    if not isinstance(ranks, Integral) or isinstance(ranks, bool):
        raise TypeError(f"ranks must be a rank, a fraction, or ranks by name, got {ranks!r}")
    return dict.fromkeys(sites, checked_count("ranks", ranks, at_least=1))


def _entry(
    site: Site, rank: int, active: Tensor | None, generator: torch.Generator | None
) -> tuple[FactorizedLayer, nn.Sequential | None]:
    rows, columns = matrix_of(site.layer).shape
    size, kept = rows * columns, site.obstacle
    if kept is None and rank > worthwhile_rank(rows, columns):
        kept = f"rank {rank} saves nothing, at most {worthwhile_rank(rows, columns)} would"
    if kept is not None:
        return FactorizedLayer(site.name, (rows, columns), None, None, (size, size), kept), None
    if generator is None:
        if site.layer.weight.is_meta:
            raise ValueError(
                f"{site.name}.weight is on the meta device and has no values; draw factors with generator="
            )
        checked_matrix(f"{site.name}.weight", matrix_of(site.layer))
    pair, lost = low_rank_pair(site.layer, rank, active=active, generator=generator)
    after = rank * (rows + columns)
    energy = lost if generator is None else None
    return FactorizedLayer(site.name, (rows, columns), rank, energy, (size, after), None), pair


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
