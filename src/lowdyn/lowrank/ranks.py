"""Rank advice: how many directions learning used in each layer, and what a rank of that size would save.

What the advice means. Learning moved a weight from W(0) by M = W − W(0), and M is nearly of low rank: its leading
directions are those that learning used (law of parsimony, Yaras et al. 2023, arXiv 2306.01154; theory §2: at most 2r
of them for a target of rank r). W itself is the sum, and has full rank as long as W(0) is random. So one rank has three
uses, and the table has a number for each:

- **To adapt** (PEFT): an update of rank r repeats M but for ``energy_lost``, exactly (Eckart and Young).
- **To factorize and train on**: the pair has room for the directions that learn. What W(0) holds outside of them goes
  at once; from a small start that is next to nothing, at an ordinary one whether training does without is a matter of
  measurement (claim C14), and ``energy_lost`` only says that the room suffices. Which part of W stays matters too: soon
  after the start the leading directions of W are W(0)'s own. ``factorize(model, advice)`` therefore keeps W V Vᵀ, V the
  right singular vectors of M. (Width 512, FashionMNIST, 100 steps, rank 8 of two layers: the training loss goes from
  0.51 to 0.57 by that, to 0.97 by the truncated SVD of W; three epochs later they are within 0.003.)
- **To truncate without training on**: ``weight_energy_lost``, the share of W's own energy outside its leading r
  directions, is what counts. It is close to one where W is mostly W(0): then do not.

The law is about gradient descent, with momentum or decay; elementwise methods such as Adam spread a small part of every
move over all directions. Let a warm-up that is to be judged run by SGD.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.linalg import rank_of_energy
from lowdyn.lowrank.pairs import matrix_of, worthwhile_rank
from lowdyn.lowrank.sites import Site, layer_sites
from lowdyn.lowrank.table import Table, ratio
from lowdyn.observe.matrices import plain_name, select
from lowdyn.observe.subspaces import ActiveSubspace, active_subspace

VALUES, NORM = "move_values", "move_norm"  # what Spectra records of W(t) − W(0)


@dataclass(frozen=True)
class AdvisedLayer:
    """The rank of one layer: the number of directions that hold the share of its move's energy, 0 if it did not move.

    ``shape`` is (out, in) of the matrix, of a convolution (out, in · kernel height · kernel width). ``energy_lost`` is
    the share of ‖W − W(0)‖²_F outside the leading ``rank`` directions, ``weight_energy_lost`` the share of ‖W‖²_F
    outside W's own. ``weights`` counts entries, which are also multiply-adds a sample, as it is and as a pair.
    ``kept`` says why a pair is not advised, if it is not. ``active`` (in, rank) spans the inputs that the move reads,
    its leading right singular vectors; None from a trajectory, which has values only.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    energy_lost: float
    weight_energy_lost: float
    weights: tuple[int, int]
    kept: str | None
    active: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class RankAdvice(Table):
    """What :func:`advise_ranks` found, layer by layer: ``factorize(model, advice)`` takes it as it is.

    Prints as a table; ``pandas.DataFrame(advice.rows())`` is one.
    """

    layers: tuple[AdvisedLayer, ...]
    share: float

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by name of the layers that are worth a pair."""
        return {layer.name: layer.rank for layer in self.layers if layer.kept is None}

    @property
    def active(self) -> dict[str, Tensor]:
        """Orthonormal bases (in, rank), by name, of the inputs that learning used, where they are known."""
        return {layer.name: layer.active for layer in self.layers if layer.active is not None}

    def rank_pattern(self) -> dict[str, int]:
        """Return the ranks of all layers that moved, as PEFT's ``rank_pattern``: a pattern for each name.

        Names are matched in full. With ranks that differ, PEFT's scaling lora_alpha/r differs too: pass the same
        mapping as ``alpha_pattern`` to have 1 in every layer.
        """
        return {f"^{re.escape(layer.name)}": layer.rank for layer in self.layers if layer.rank > 0}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a layer."""
        return [
            {
                "layer": layer.name,
                "shape": layer.shape,
                "rank": layer.rank,
                "energy lost": layer.energy_lost,
                "of the weight's": layer.weight_energy_lost,
                "weights": layer.weights[0],
                "as a pair": layer.weights[1],
                "kept because": layer.kept,
            }
            for layer in self.layers
        ]

    def caption(self) -> str:
        """Return the share that the ranks hold, and what they save."""
        advised = [layer.weights for layer in self.layers if layer.kept is None]
        before = sum(layer.weights[0] for layer in self.layers)
        after = before - sum(dense - pair for dense, pair in advised)
        return f"ranks hold {self.share:.4g} of each move's energy; {ratio('weights', before, after)}"


def advise_ranks(
    model: nn.Module,
    reference: xr.Dataset | nn.Module | Mapping[str, Tensor],
    *,
    layers: str | None = None,
    share: float = 0.9,
    rescaled: bool = False,
    keep_first_last: bool = True,
) -> RankAdvice:
    """Return, for each layer of ``model``, the rank that learning needed, as a table with what it would save.

    The rank is the smallest that holds ``share`` of the energy of the move W − W(0); 0.9 is what the lecture's claim
    of low-dimensional learning asks of 2K directions (claim C2). ``reference`` says where the move began: the start's
    state dict, or the model itself at the start (``copy.deepcopy``), or a trajectory of a Tracker whose
    :class:`~lowdyn.Spectra` recorded the singular values of the moves; its last record counts. ``rescaled`` takes the
    shrinking of all of W(0) by weight decay out of the move (:func:`lowdyn.observe.active_subspace`; not of a
    trajectory). ``layers`` is a pattern searched in the names.

    The table goes to ``factorize(model, advice)``, which makes pairs of the layers that have one worth while, the first
    and last left out unless ``keep_first_last`` is False; :meth:`RankAdvice.rank_pattern` goes to PEFT. The three uses
    of a rank are told apart at the head of this module (``lowdyn.lowrank.ranks``).

    ValueError when the reference has no such layer, or one of another shape, or when nothing moved.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    >>> start = {name: value.clone() for name, value in model.state_dict().items()}
    >>> with torch.no_grad():
    ...     _ = model[1].weight.add_(torch.outer(torch.ones(8), torch.ones(8)))
    >>> advice = advise_ranks(model, start, layers="1")
    >>> advice.ranks, advice.rank_pattern()
    ({'1': 1}, {'^1': 1})
    """
    if share == 0:
        raise ValueError("share must be above 0: no direction holds nothing")
    sites = layer_sites(model, keep_first_last=keep_first_last)
    names = select(list(sites), layers, "linear or convolutional layer")
    found: dict[str, ActiveSubspace] = {}
    if isinstance(reference, xr.Dataset):
        if rescaled:
            raise ValueError("a trajectory holds moves that are not rescaled; pass the start as reference instead")
        moves = _moves_of_trajectory(reference, names)
        for name, values in moves.items():
            if rank_of_energy(values, share) == len(values) and len(values) <= min(matrix_of(sites[name].layer).shape):
                raise ValueError(
                    f"of the move of {name} the trajectory holds {len(values) - 1} values, with less than {share:g} of "
                    "its energy; record more with Spectra(top=…), or pass the start as reference"
                )
    else:
        state = reference.state_dict() if isinstance(reference, nn.Module) else reference
        starts = {plain_name(name): value for name, value in state.items()}
        found = {name: _move(sites[name], starts, rescaled) for name in names}
        moves = {name: move.values for name, move in found.items()}
    advised = tuple(_advised(sites[name], moves[name], share, found.get(name)) for name in moves)
    if not any(layer.rank for layer in advised):
        raise ValueError(f"none of {', '.join(moves)} moved from the reference; pass the start, not the model of now")
    return RankAdvice(advised, share)


def _move(site: Site, starts: Mapping[str, Tensor], rescaled: bool) -> ActiveSubspace:
    start, weight = starts.get(f"{site.name}.weight"), matrix_of(site.layer)
    if start is None:
        raise ValueError(f"the reference has no {site.name}.weight; it has {', '.join(starts) or 'nothing'}")
    if start.shape != site.layer.weight.shape:
        raise ValueError(
            f"{site.name}.weight is {tuple(site.layer.weight.shape)}, in the reference {tuple(start.shape)}; "
            "pass the start of this very model"
        )
    return active_subspace([start.flatten(start_dim=1).to(weight.device), weight], rescaled=rescaled)


def _moves_of_trajectory(trajectory: xr.Dataset, names: list[str]) -> dict[str, Tensor]:
    """Return the singular values of the layers' moves at the last record, and last the norm of those not recorded."""
    if not {VALUES, NORM} <= trajectory.data_vars.keys():
        held = ", ".join(map(str, trajectory.data_vars)) or "nothing"
        raise ValueError(f"this trajectory holds {held}; advice needs {VALUES} and {NORM} of lowdyn.Spectra")
    last = trajectory.isel(step=-1)
    followed = [str(name) for name in last["layer"].values]
    shared = [name for name in names if name in followed]
    if not shared:
        raise ValueError(f"the trajectory follows {', '.join(followed)}, of which {', '.join(names)} has none")
    moves = {}
    for name in shared:
        values = torch.from_numpy(last[VALUES].sel(layer=name).values).to(torch.float64)
        values = values[~values.isnan()]
        rest = float(last[NORM].sel(layer=name)) ** 2 - float(values.square().sum())
        moves[name] = torch.cat([values, values.new_tensor([max(rest, 0.0) ** 0.5])])
    return moves


def _advised(site: Site, move: Tensor, share: float, found: ActiveSubspace | None) -> AdvisedLayer:
    matrix = matrix_of(site.layer)
    rows, columns = matrix.shape
    rank, kept = rank_of_energy(move, share), site.obstacle
    own = torch.linalg.svdvals(matrix.to(torch.float64))
    if rank == 0:
        kept = "it did not move"
    elif kept is None and rank > worthwhile_rank(rows, columns):
        kept = f"at most rank {worthwhile_rank(rows, columns)} saves"
    lost, own_lost = (_beyond(values, rank) for values in (move, own))
    return AdvisedLayer(
        site.name,
        (rows, columns),
        rank,
        lost,
        own_lost,
        (rows * columns, rank * (rows + columns)),
        kept,
        None if found is None or rank == 0 else found.right[:, :rank].clone(),
    )


def _beyond(values: Tensor, rank: int) -> float:
    """Return the share of the energy in all but the first ``rank`` singular values."""
    energy = values.square()
    total = float(energy.sum())
    return float(energy[rank:].sum()) / total if total > 0 else 0.0
