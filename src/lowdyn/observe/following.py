"""One weight matrix followed through training: exact looks, cheap looks between them, and its move from the start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowdyn.observe import error_bounds
from lowdyn.observe.enclosure import EXTRA, Enclosure, enclose
from lowdyn.observe.matrices import WeightMatrix
from lowdyn.observe.summary import QUANTILES, bulk_of, length_of, ranks, rms_of
from lowdyn.observe.turning import (
    Groups,
    Reference,
    Turned,
    against_active,
    against_reference,
    groups_of,
    leading_resolved,
    resolved_of,
)

Seen = dict[str, Tensor]
SIDES = ("left", "right")
MOVE = ("move_norm", "outside_energy")


class Followed:
    """What :class:`~lowdyn.Spectra` holds of one weight: its reference, its start, and the blocks kept warm.

    ``bases``, orthonormal in float64, are of active subspaces (left, right) to measure against instead of the first
    look at or after step ``after``. With ``warm``, looks between exact ones are enclosures, unless a bound exceeds
    ``tolerance`` times the largest singular value.
    """

    def __init__(
        self,
        matrix: WeightMatrix,
        top: int,
        *,
        after: int,
        bases: tuple[Tensor, Tensor] | None,
        warm: bool,
        tolerance: float,
    ) -> None:
        self.matrix, self.top, self.after, self.bases = matrix, top, after, bases
        self.warm, self.tolerance = warm, tolerance
        self.length = min(matrix.shape[-2:])
        self.references: dict[str, Reference] = {}
        self.start: Tensor | None = None
        self.blocks: dict[str, Tensor] = {}
        # Of its own: looking leaves the global generator alone, and the same run is seen the same way.
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, step: int) -> Seen:
        """Return what is seen now; (…, n) for n singular values, NaN where a cheap look does not see."""
        return self.look(self.matrix(), step)

    def look(self, weight: Tensor, step: int) -> Seen:
        """Return the same of ``weight``, this one's as it is now."""
        found = None
        # The reference is exact: angles of middle and trailing subspaces are measured against it later.
        if "weight" in self.blocks and (self.bases is not None or self.references or step < self.after):
            found = self._enclosure("weight", self._working(weight))
        seen = self._exact(weight, step) if found is None else self._enclosed(found, weight)
        return {**seen, **self._move(weight, step)}

    def _working(self, weight: Tensor) -> Tensor:
        """In float32, or float64 where the weights are, and standing upright."""
        weight = weight if weight.dtype == torch.float64 else weight.to(torch.float32)
        return weight if weight.shape[-2] >= weight.shape[-1] else weight.mT

    def _enclosure(self, name: str, tall: Tensor) -> Enclosure | None:
        """Enclose from the block kept under ``name``; None where that is not good enough."""
        block = self.blocks.get(name)
        if block is None:
            block = torch.randn(tall.shape[1], self.top + EXTRA, generator=self.generator, dtype=tall.dtype)
            block = torch.linalg.qr(block)[0]
        found = enclose(tall, block.to(tall), self.top, self.generator)
        if not found.settled or bool(found.bounds.max() > self.tolerance * found.values[0]):
            return None
        # What is held is contiguous, as it would be after a resume: the layout decides the last digit of a product.
        self.blocks[name] = found.block.contiguous()
        return found

    def _exact(self, weight: Tensor, step: int) -> Seen:
        left, values, right_t = torch.linalg.svd(weight.to(torch.float64), full_matrices=False)
        if self.warm:
            self.blocks["weight"] = self._block(weight, left, right_t.mT)
        rows, columns = weight.shape[-2:]
        rounding = max(rows, columns) * torch.finfo(torch.float64).eps * values[..., :1]
        numerical, stable, effective = ranks(values, rows, columns, weight.dtype)
        threshold = max(rows, columns) * torch.finfo(weight.dtype).eps
        seen = {
            "singular_values": values,
            "value_bounds": rounding.expand_as(values),
            "bulk": bulk_of(values, self.top),
            "bulk_rms": rms_of(values[..., self.top :]),
            "numerical_rank": numerical.to(torch.float64),
            "stable_rank": stable,
            "effective_rank": effective,
            "exact": torch.ones_like(stable),
            **error_bounds.of_all_values(values, rounding[..., 0], self.top, threshold, stable, effective),
        }
        groups = groups_of(self.length, self.top)
        for side, vectors in zip(SIDES, (left, right_t.mT), strict=True):
            # Beyond min(out, in) the longer side has a null space, whose singular value is 0.
            ends_open = (rows if side == "left" else columns) > self.length
            resolved = resolved_of(values, groups, open_end=ends_open)
            turned = error_bounds.of_vectors(values, rounding[..., 0], groups, open_end=ends_open)
            if self.bases is None and side not in self.references and step >= self.after:
                basis = vectors.to(weight.dtype if self.warm else torch.float64).contiguous()
                kept = zip(turned, error_bounds.of_rounded(vectors, basis, groups), strict=True)
                single, parts = (one + more for one, more in kept)
                self.references[side] = Reference(basis, resolved, (single, parts))
            seen |= self._angles(side, vectors, groups, resolved, turned)
        return seen

    def _enclosed(self, found: Enclosure, weight: Tensor) -> Seen:
        """What an enclosure knows, filled up with NaN; it stands upright and the weight may not."""
        empty = found.values.new_full((self.length,), torch.nan)
        values, bounds = empty.clone(), empty.clone()
        values[: self.top], bounds[: self.top] = found.values, found.bounds
        one = found.values.new_tensor
        stable = one((found.norm / float(found.values[0])) ** 2 if found.norm > 0 else 0.0)
        outside = self.length - self.top
        rms = found.norm * (_outside(found) / outside).sqrt()
        norm, largest = (one(found.norm), one(found.norm_bound)), (found.values[0], found.bounds[0])
        seen = {
            "singular_values": values,
            "value_bounds": bounds,
            "bulk": one([math.nan] * len(QUANTILES)),
            "bulk_rms": rms,
            "bulk_rms_bound": error_bounds.of_bulk_rms(rms, *norm, found.values, found.bounds, outside),
            "stable_rank": stable,
            "stable_rank_bound": error_bounds.of_stable_rank(stable, *norm, *largest, self.length),
            "exact": one(0.0),
            **{f"{rank}_rank{bound}": one(math.nan) for rank in ("numerical", "effective") for bound in ("", "_bound")},
            "bulk_bound": one(math.nan),
        }
        upright = weight.shape[-2] >= weight.shape[-1]
        bases = (found.left, found.right) if upright else (found.right, found.left)
        turned = list(zip(found.single_turned, found.turned, strict=True))[:: 1 if upright else -1]
        groups = (slice(0, self.top), slice(self.top, self.top), slice(self.top, self.top))
        resolved = leading_resolved(found.values, found.next_value, found.rounding)
        for side, basis, (single, whole) in zip(SIDES, bases, turned, strict=True):
            # An angle alone does not depend on a vector's length; that of the span takes them as orthonormal.
            parts = (whole + error_bounds.of_skewness(basis)).expand(3)
            for name, value in self._angles(side, basis, groups, resolved, (single, parts)).items():
                known = empty.clone() if "angle" in name else value
                known[: len(value)] = value
                seen[name] = known
        return seen

    def _angles(self, side: str, basis: Tensor, groups: Groups, resolved: tuple[Tensor, Tensor], now: Turned) -> Seen:
        """Angles of the columns of ``basis``, known to ``now``, that are defined, to the reference or given bases."""
        length = basis.shape[-1]
        rounding = 4 * max(self.matrix.shape[-2:]) * error_bounds.EPS
        turned = [bound + rounding for bound in now]
        if self.bases is not None:
            angles, turns = against_active(basis, self.bases[SIDES.index(side)].to(basis), groups)
        elif side in self.references:
            reference = self.references[side]
            angles, turns = against_reference(basis, reference.basis[..., :length].to(basis), groups)
            # On the weight's device, which a state that was read from a file is not.
            then = [one.to(basis.device) for one in (*reference.resolved, *reference.turned)]
            resolved = (resolved[0] & then[0][..., :length], resolved[1] & then[1])
            turned = [turned[0] + then[2][..., :length], turned[1] + then[3]]
        else:
            angles = basis.new_full((*basis.shape[:-2], length), torch.nan)
            turns = angles.new_full((*basis.shape[:-2], 3), torch.nan)
        turned = [bound.clamp(max=math.pi / 2) for bound in turned]
        angles, turns = angles.masked_fill(~resolved[0], torch.nan), turns.masked_fill(~resolved[1], torch.nan)
        return {
            f"{side}_angles": angles,
            f"{side}_angle_bounds": turned[0].masked_fill(angles.isnan(), torch.nan),
            f"{side}_turn": turns,
            f"{side}_turn_bounds": turned[1].masked_fill(turns.isnan(), torch.nan),
        }

    def _move(self, weight: Tensor, step: int) -> Seen:
        """The top of W(t) − W(reference), its norm, and the share of its energy outside the top."""
        kept = min(self.top, self.length)
        if self.start is None and (self.bases is not None or step >= self.after):
            self.start = weight.clone(memory_format=torch.contiguous_format)
        if self.start is None:
            unknown = weight.new_full((*weight.shape[:-2], kept), torch.nan, dtype=torch.float64)
            nothing = unknown.new_full(weight.shape[:-2], torch.nan)
            both = {"move_values": unknown, "move_bounds": unknown}
            return both | {f"{name}{bound}": nothing for name in MOVE for bound in ("", "_bound")}
        start = self.start.to(weight.device)
        found = None
        if self.warm:
            precision = torch.promote_types(weight.dtype, torch.float32)
            found = self._enclosure("move", self._working(weight.to(precision) - start.to(precision)))
        if found is not None:
            norm, values = found.values.new_tensor(found.norm), found.values
            # The difference was rounded too, entry by entry.
            rounding = torch.finfo(precision).eps / 2 * found.norm
            bounds, norm_bound = found.bounds + rounding, norm.new_tensor(found.norm_bound + rounding)
            share = _outside(found)
            outside = error_bounds.of_share_outside(share, norm, norm_bound, values, bounds)
            known = {"move_norm_bound": norm_bound, "outside_energy_bound": outside}
        else:
            move = weight.to(torch.float64) - start.to(torch.float64)
            if self.warm:
                left, every, right_t = torch.linalg.svd(move, full_matrices=False)
                self.blocks["move"] = self._block(weight, left, right_t.mT)
            else:
                every = torch.linalg.svdvals(move)
            norm, values = length_of(every), every[..., :kept]
            bound = max(weight.shape[-2:]) * error_bounds.EPS * every[..., 0]
            bounds = bound.unsqueeze(-1).expand_as(values)
            share = (length_of(every[..., kept:]) / torch.where(norm > 0, norm, 1.0)).square()
            known = error_bounds.of_move(every, bound, kept, share)
        return {"move_values": values, "move_bounds": bounds, "move_norm": norm, "outside_energy": share} | known

    def _block(self, weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The leading vectors of the shorter side: where the next enclosure begins."""
        basis = right if weight.shape[-2] >= weight.shape[-1] else left
        precision = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return basis[:, : self.top + EXTRA].to(precision).contiguous()

    def state(self) -> dict[str, Tensor]:
        """Everything a later look depends on, as tensors by name."""
        held = {f"block.{name}": block for name, block in self.blocks.items()}
        if self.start is not None:
            held["start"] = self.start
        for side, reference in self.references.items():
            held |= {f"{side}.{name}": value for name, value in reference.state().items()}
        return {**held, "generator": self.generator.get_state()}

    def check(self, name: str, state: dict[str, Tensor]) -> None:
        """Raise ValueError unless a :meth:`state` can be one of this weight, called ``name``."""
        if "generator" not in state:
            raise ValueError(f"the state of Spectra holds nothing of {name!r}; pass that of the same model")
        needed = [f"{side}.{part}" for side in SIDES if f"{side}.basis" in state for part in Reference.PARTS]
        if lacking := [key for key in needed if key not in state]:
            raise ValueError(
                f"the state of {name!r} lacks {', '.join(lacking)}; pass one that this version of lowdyn returned"
            )
        shape = tuple(self.matrix.shape)
        rows = {"left.basis": shape[-2], "right.basis": shape[-1], "start": shape[-2]}
        for key, value in state.items():
            wanted = self.length if key.startswith("block.") else rows.get(key)
            if (wanted is not None and value.shape[-2] != wanted) or (key == "start" and tuple(value.shape) != shape):
                raise ValueError(f"the state of {name!r} has {key} of {tuple(value.shape)}, the weight is {shape}")

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        self.generator.set_state(state["generator"].cpu())
        self.start = state.get("start")
        self.blocks = {key.removeprefix("block."): value for key, value in state.items() if key.startswith("block.")}
        self.references = {
            side: Reference.from_state({name: state[f"{side}.{name}"] for name in Reference.PARTS})
            for side in SIDES
            if f"{side}.basis" in state
        }


def _outside(found: Enclosure) -> Tensor:
    """The share of ‖W‖_F² outside the leading values."""
    held = (found.values / (found.norm or 1.0)).square().sum()
    return (1 - held).clamp(min=0.0) if found.norm > 0 else held
