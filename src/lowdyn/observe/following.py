"""One weight matrix followed through training: exact looks, cheap looks between them, and its move from the start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowdyn.observe.enclosure import EXTRA, Enclosure, enclose
from lowdyn.observe.matrices import WeightMatrix
from lowdyn.observe.summary import QUANTILES, bulk_of, ranks
from lowdyn.observe.turning import (
    Groups,
    Reference,
    against_active,
    against_reference,
    gap_below,
    groups_of,
    leading_resolved,
    resolved_of,
)

Seen = dict[str, Tensor]
SIDES = ("left", "right")


class Followed:
    """What :class:`~lowdyn.Spectra` holds of one weight: its reference, its start, and the blocks kept warm.

    ``bases`` are active subspaces (left, right) to measure against instead of the first look at or after step
    ``after``. With ``warm``, looks between exact ones are enclosures, unless a bound exceeds ``tolerance`` times the
    largest singular value.
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
        self.blocks[name] = found.block
        return found

    def _exact(self, weight: Tensor, step: int) -> Seen:
        left, values, right_t = torch.linalg.svd(weight.to(torch.float64), full_matrices=False)
        if self.warm:
            self.blocks["weight"] = self._block(weight, left, right_t.mT)
        rows, columns = weight.shape[-2:]
        rounding = max(rows, columns) * torch.finfo(torch.float64).eps * values[..., :1]
        numerical, stable, effective = ranks(values, rows, columns, weight.dtype)
        seen = {
            "singular_values": values,
            "value_bounds": rounding.expand_as(values),
            "bulk": bulk_of(values, self.top),
            "bulk_rms": _rms(values[..., self.top :].square().sum(dim=-1), self.length - self.top),
            "numerical_rank": numerical.to(torch.float64),
            "stable_rank": stable,
            "effective_rank": effective,
            "exact": torch.ones_like(stable),
        }
        groups = groups_of(self.length, self.top)
        for side, vectors in zip(SIDES, (left, right_t.mT), strict=True):
            # Beyond min(out, in) the longer side has a null space, whose singular value is 0.
            ends_open = (rows if side == "left" else columns) > self.length
            resolved = resolved_of(values, groups, open_end=ends_open)
            if self.bases is None and side not in self.references and step >= self.after:
                # Contiguous, as it would be after a resume: the layout decides the last digit of a product.
                basis = vectors.to(weight.dtype if self.warm else torch.float64).contiguous()
                self.references[side] = Reference(basis, resolved)
            seen |= self._angles(side, vectors, groups, resolved)
            gap = gap_below(values, groups[0].stop, open_end=ends_open)
            seen[f"{side}_turn_bound"] = torch.asin((rounding[..., 0] / gap).clamp(max=1.0).nan_to_num(1.0))
        return seen

    def _enclosed(self, found: Enclosure, weight: Tensor) -> Seen:
        """What an enclosure knows, filled up with NaN; it stands upright and the weight may not."""
        empty = found.values.new_full((self.length,), torch.nan)
        values, bounds = empty.clone(), empty.clone()
        values[: self.top], bounds[: self.top] = found.values, found.bounds
        rest = max(0.0, found.norm**2 - float(found.values.square().sum()))
        one = found.values.new_tensor
        stable = (found.norm / float(found.values[0])) ** 2 if found.norm > 0 else 0.0
        seen = {
            "singular_values": values,
            "value_bounds": bounds,
            "bulk": one([math.nan] * len(QUANTILES)),
            "bulk_rms": _rms(one(rest), self.length - self.top),
            "numerical_rank": one(math.nan),
            "stable_rank": one(stable),
            "effective_rank": one(math.nan),
            "exact": one(0.0),
        }
        upright = weight.shape[-2] >= weight.shape[-1]
        bases = (found.left, found.right) if upright else (found.right, found.left)
        turned = found.turned if upright else found.turned[::-1]
        groups = (slice(0, self.top), slice(self.top, self.top), slice(self.top, self.top))
        resolved = leading_resolved(found.values, found.next_value, found.rounding)
        for side, basis, bound in zip(SIDES, bases, turned, strict=True):
            part = self._angles(side, basis, groups, resolved)
            angles = empty.clone()
            angles[: self.top] = part[f"{side}_angles"]
            turns = part[f"{side}_turn"].clone()
            turns[1:] = torch.nan
            seen |= {f"{side}_angles": angles, f"{side}_turn": turns, f"{side}_turn_bound": one(bound)}
        return seen

    def _angles(self, side: str, basis: Tensor, groups: Groups, resolved: tuple[Tensor, Tensor]) -> Seen:
        """Angles of the columns of ``basis`` that are defined, to the reference or the given bases."""
        length = basis.shape[-1]
        if self.bases is not None:
            angles, turns = against_active(basis, self.bases[SIDES.index(side)].to(basis), groups)
        elif side in self.references:
            reference = self.references[side]
            angles, turns = against_reference(basis, reference.basis[..., :length].to(basis), groups)
            then = (reference.resolved[0][..., :length], reference.resolved[1])
            resolved = (resolved[0] & then[0], resolved[1] & then[1])
        else:
            angles = basis.new_full((*basis.shape[:-2], length), torch.nan)
            turns = angles.new_full((*basis.shape[:-2], 3), torch.nan)
        return {
            f"{side}_angles": angles.masked_fill(~resolved[0], torch.nan),
            f"{side}_turn": turns.masked_fill(~resolved[1], torch.nan),
        }

    def _move(self, weight: Tensor, step: int) -> Seen:
        """The top of W(t) − W(reference), its norm, and the share of its energy outside the top."""
        kept = min(self.top, self.length)
        if self.start is None and (self.bases is not None or step >= self.after):
            self.start = weight.clone()
        if self.start is None:
            unknown = weight.new_full((*weight.shape[:-2], kept), torch.nan, dtype=torch.float64)
            nothing = unknown.new_full(weight.shape[:-2], torch.nan)
            return {"move_values": unknown, "move_bounds": unknown, "move_norm": nothing, "outside_energy": nothing}
        precision = torch.float64 if not self.warm else torch.promote_types(weight.dtype, torch.float32)
        move = weight.to(precision) - self.start.to(weight.device)
        found = self._enclosure("move", self._working(move)) if self.warm else None
        if found is not None:
            norm, values, bounds = found.values.new_tensor(found.norm), found.values, found.bounds
            energy = (norm**2 - values.square().sum()).clamp(min=0.0)
        else:
            if self.warm:
                left, every, right_t = torch.linalg.svd(move.to(torch.float64), full_matrices=False)
                self.blocks["move"] = self._block(weight, left, right_t.mT)
            else:
                every = torch.linalg.svdvals(move.to(torch.float64))
            norm, values = every.norm(dim=-1), every[..., :kept]
            bounds = (max(weight.shape[-2:]) * torch.finfo(torch.float64).eps * every[..., :1]).expand_as(values)
            energy = every[..., kept:].square().sum(dim=-1)
        share = torch.where(norm > 0, energy / torch.where(norm > 0, norm, 1.0).square(), 0.0)
        return {"move_values": values, "move_bounds": bounds, "move_norm": norm, "outside_energy": share}

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


def _rms(squares: Tensor, count: int) -> Tensor:
    return (squares / count).sqrt() if count > 0 else torch.full_like(squares, torch.nan)
