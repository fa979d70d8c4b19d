"""Spectra of a reduced network: the same record as of the full one, from its core, at the core's cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.dynamics.small import SmallNetwork
from lowdyn.linalg import principal_angles
from lowdyn.observe import error_bounds
from lowdyn.observe.following import MOVE
from lowdyn.observe.summary import QUANTILES, bulk_of, length_of, ranks, rms_of
from lowdyn.observe.turning import Reference, Turned, groups_of, resolved_of, warn_of
from lowdyn.trajectory import Record

WIDEST = 20_000  # beyond it a record of every singular value is mostly copies of one number


class ReducedSpectraLook:
    """Spectra of one reduced network; the inert values stand in the list as often as they occur.

    Leading and trailing directions are the core's, seen in full width through the active bases. The middle
    subspace is what they leave over. No d x d array and no d x d SVD is needed.
    """

    def __init__(self, model: SmallNetwork, top: int, reference: int, prefix: str) -> None:
        if model.runs is not None:
            raise ValueError("Spectra of reduced networks are of one at a time; take small.run(i)")
        if max(model.sizes) > WIDEST:
            raise ValueError(
                f"width {max(model.sizes)} has too many equal singular values to record them all; "
                "small.singular_values(layer) gives them with multiplicities"
            )
        self.model, self.top, self.reference, self.prefix = model, top, reference, prefix
        self.ranks = [min(pair) for pair in zip(model.sizes[:-1], model.sizes[1:], strict=True)]
        self.coords: dict[str, Any] = {
            "layer": [f"W{layer}" for layer in range(1, model.depth + 1)],
            "index": np.arange(max(self.ranks)),
            "part": ["leading", "middle", "trailing"],
            f"{prefix}move": np.arange(min(top, max(self.ranks))),
            "quantile": list(QUANTILES),
        }
        self.references: dict[str, Reference] = {}
        self.start: tuple[list[Tensor], Tensor] | None = None

    def __call__(self, step: int) -> Record:
        """Return the record of the present core."""
        shape = (self.model.depth, max(self.ranks))
        values = np.full(shape, np.nan)
        angles = {side: np.full(shape, np.nan) for side in ("left", "right")}
        turns = {side: np.full((shape[0], 3), np.nan) for side in ("left", "right")}
        bounds = {side: (angles[side].copy(), turns[side].copy()) for side in ("left", "right")}
        if self.start is None and step >= self.reference:
            self.start = [weight.clone() for weight in self.model.core.weights], self.model.inert_scale.clone()
        rows = []
        for place, rank in enumerate(self.ranks):
            present, owners = self._values(place + 1, rank)
            values[place, :rank] = present
            rows.append(self._rest(place + 1, present, shape[1]))
            if self.top:
                for side in ("left", "right"):
                    (one, parts), turned = self._angles(place + 1, side, present, owners, step)
                    angles[side][place, :rank], turns[side][place] = one, parts
                    for whole, bound, value in zip(bounds[side], turned, (one, parts), strict=True):
                        whole[place, : len(value)] = bound.masked_fill(value.isnan(), torch.nan)
        warn_of(self.references.items())
        record: dict[str, Any] = {"singular_values": (("layer", "index"), values)}
        for side in ("left", "right"):
            record[f"{side}_angles"] = (("layer", "index"), angles[side])
            record[f"{side}_turn"] = (("layer", "part"), turns[side])
            record[f"{side}_angle_bounds"] = (("layer", "index"), bounds[side][0])
            record[f"{side}_turn_bounds"] = (("layer", "part"), bounds[side][1])
        for name in rows[0]:
            dims = {"move_values": (f"{self.prefix}move",), "move_bounds": (f"{self.prefix}move",)}
            dims |= {"value_bounds": ("index",), "bulk": ("quantile",)}
            record[name] = (("layer", *dims.get(name, ())), np.array([np.asarray(row[name]) for row in rows]))
        return {self.prefix + name: value for name, value in record.items()}

    def _values(self, layer: int, rank: int) -> tuple[Tensor, Tensor]:
        """All singular values, descending, and which of the core's each is (−1: inert)."""
        values, counts = self.model.singular_values(layer)
        core = min(self.model.core.weights[layer - 1].shape)
        owners = torch.cat([torch.arange(core), torch.full((len(values) - core,), -1)]).repeat_interleave(counts)
        values = values.to(torch.float64).repeat_interleave(counts)
        values = torch.nn.functional.pad(values, (0, max(0, rank - len(values))))
        owners = torch.nn.functional.pad(owners, (0, max(0, rank - len(owners))), value=-1)
        order = torch.sort(values, descending=True, stable=True).indices[:rank]
        return values[order], owners[order]

    def _rest(self, layer: int, values: Tensor, longest: int) -> dict[str, Any]:
        """What the record of the full network holds beside values and angles, of one layer."""
        rows, columns = self.model.sizes[layer], self.model.sizes[layer - 1]
        eps = max(rows, columns) * torch.finfo(torch.float64).eps
        dtype = self.model.core.weights[0].dtype
        numerical, stable, effective = ranks(values, rows, columns, dtype)
        threshold = max(rows, columns) * torch.finfo(dtype).eps
        rest = {
            "value_bounds": np.pad(
                np.full(len(values), eps * float(values[0])), (0, longest - len(values)), constant_values=np.nan
            ),
            "bulk": bulk_of(values, self.top),
            "bulk_rms": float(rms_of(values[self.top :])),
            "numerical_rank": float(numerical),
            "stable_rank": float(stable),
            "effective_rank": float(effective),
            "exact": 1.0,
            **error_bounds.of_all_values(values, eps * values[0], self.top, threshold, stable, effective),
        }
        kept = min(self.top, longest)
        moves = torch.full((kept,), torch.nan, dtype=torch.float64)
        if self.start is None:
            unknown = {f"{name}{bound}": np.nan for name in MOVE for bound in ("", "_bound")}
            return rest | {"move_values": moves, "move_bounds": moves} | unknown
        # Active and inert directions stay what they are, so the move is one of the core and one of each scale.
        cores, scales = self.start
        values, counts = self.model.spread(
            layer,
            torch.linalg.svdvals(self.model.core.weights[layer - 1] - cores[layer - 1]),
            self.model.inert_scale - scales,
        )
        every = values.to(torch.float64).repeat_interleave(counts).sort(descending=True).values
        moves[: min(rows, columns)] = 0.0  # directions that the shape maps to zero do not move
        moves[: len(every)] = every[:kept]
        norm = float(length_of(every))
        outside = float(length_of(every[kept:]) / norm) ** 2 if norm > 0 else 0.0
        bounds = torch.where(moves.isnan(), moves, eps * every[0])
        known = error_bounds.of_move(every, eps * every[0], kept, every.new_tensor(outside))
        return (
            rest | {"move_values": moves, "move_bounds": bounds, "move_norm": norm, "outside_energy": outside} | known
        )

    def _angles(self, layer: int, side: str, values: Tensor, owners: Tensor, step: int) -> tuple[Turned, Turned]:
        """Return the angles, single and by part, and the bounds on them."""
        sizes = self.model.sizes
        groups = groups_of(len(values), self.top)
        ends_open = sizes[layer if side == "left" else layer - 1] > len(values)
        resolved = resolved_of(values, groups, open_end=ends_open)
        eps = max(sizes[layer - 1 : layer + 1]) * error_bounds.EPS
        turned = error_bounds.of_vectors(values, eps * values[0], groups, open_end=ends_open)
        outer = [*range(groups[0].stop), *range(groups[2].start, len(values))]
        left, _, right_t = torch.linalg.svd(self.model.core.weights[layer - 1].to(torch.float64), full_matrices=False)
        basis = self.model.active[layer] @ left if side == "left" else self.model.active[layer - 1] @ right_t.mT
        own = owners[outer] >= 0
        vectors = basis[:, owners[outer].clamp(min=0)].masked_fill(~own, torch.nan)
        # Inert directions rest: the middle subspace turns as the core's share of it does.
        among = owners[groups[1]]
        whole = torch.cat([vectors, basis[:, among[among >= 0]]], dim=1)
        key = f"W{layer} {side}"
        if key not in self.references and step >= self.reference:
            self.references[key] = Reference(whole, resolved, turned)
        angles, turns = torch.full_like(values, torch.nan), values.new_full((3,), torch.nan)
        if key not in self.references or self.references[key].basis.shape != whole.shape:
            return (angles, turns), turned
        then = self.references[key]
        lead, ends = groups[0].stop, len(outer)
        for place, part in enumerate((slice(0, lead), slice(ends, None), slice(lead, ends))):
            now, before = whole[:, part], then.basis[:, part]
            if not bool((now.isnan() | before.isnan()).any()):
                principal = principal_angles(now, before)
                turns[place] = principal[0] if len(principal) else 0.0
        cosines = (vectors * then.basis[:, :ends]).sum(dim=0)
        angles[outer] = torch.atan2((vectors - then.basis[:, :ends] * cosines).norm(dim=0), cosines.abs())
        angles[groups[1]] = turns[1]
        angles = angles.masked_fill(~(resolved[0] & then.resolved[0]), torch.nan)
        turns = turns.masked_fill(~(resolved[1] & then.resolved[1]), torch.nan)
        single, parts = ((a + b + 4 * eps).clamp(max=np.pi / 2) for a, b in zip(turned, then.turned, strict=True))
        return (angles, turns), (single, parts)
