"""Singular values and the turning of singular subspaces, of every weight matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_count
from lowdyn.linalg import principal_angles
from lowdyn.observe.matrices import select, weight_matrices
from lowdyn.trajectory import Record

Bases = Mapping[str, tuple[Tensor, Tensor]]
PARTS = ("leading", "middle", "trailing")


@dataclass(frozen=True)
class Spectra:
    """Probe: singular values of each weight, and how far its singular subspaces have turned, by exact SVD.

    ``layers`` is a pattern searched in the names of the linear layers (all of them by default). ``top``
    leading and as many trailing directions are followed one by one, those between them as one subspace.
    ``reference`` is the step whose singular vectors the angles are measured against (the first record at or
    after it), or a mapping from layer name to orthonormal bases (left, right) of active subspaces: then
    leading and trailing directions are measured against the active subspace, the middle against its
    orthogonal complement. ``prefix`` goes before the variables' names, so that several can look at once.

    What it records, all in float64 (``layer`` by name, ``index`` from 0, descending singular values; NaN where
    a layer has fewer than the longest; a dimension ``run`` in front for networks side by side):

    - ``singular_values`` (layer, index)
    - ``right_angles``, ``left_angles`` (layer, index), radians: between v_i(t), u_i(t) and their reference;
      the middle indices share the largest principal angle of the middle subspace
    - ``right_turn``, ``left_turn`` (layer, part), radians: largest principal angle of the leading, middle and
      trailing subspace

    A singular vector is defined only as well as its singular value stands apart: where the reference, or the
    present matrix, is degenerate (a gap below ``1e3·d·eps·σ_1``), the angle is NaN, and a degenerate
    reference gives a warning. An orthogonal start is degenerate through and through; take ``reference=1``.

    >>> from lowdyn import DeepLinearNetwork
    >>> net = DeepLinearNetwork.from_weights([[[3.0, 0.0], [0.0, 1.0]]])
    >>> look = Spectra(top=1).begin(net)
    >>> dims, values = look(0)["singular_values"]
    >>> dims, values.tolist(), look.coords["layer"]
    (('layer', 'index'), [[3.0, 1.0]], ['W1'])
    """

    layers: str | None = None
    top: int = 16
    reference: int | Bases = 0
    prefix: str = ""

    def __post_init__(self) -> None:
        checked_count("top", self.top)
        if not isinstance(self.reference, Mapping):
            checked_count("reference", self.reference)

    def begin(self, model: nn.Module) -> SpectraLook:
        """Start looking at ``model``; nothing is read before the first record."""
        readers = weight_matrices(model, self.layers)
        if isinstance(self.reference, Mapping):
            for name in readers:
                select(list(self.reference), f"^{name}$", "reference basis")
        return SpectraLook(readers, self)


class SpectraLook:
    """Spectra of one model; holds the reference subspaces once they are taken."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]], probe: Spectra) -> None:
        self.readers = readers
        self.probe = probe
        self.length = max(min(read().shape[-2:]) for read in readers.values())
        self.coords: dict[str, Any] = {
            "layer": list(readers),
            "index": np.arange(self.length),
            "part": list(PARTS),
        }
        self.references: dict[str, _Reference] = {}

    def __call__(self, step: int) -> Record:
        """Return the record of the present weights."""
        columns: dict[str, list[np.ndarray]] = {}
        for name, read in self.readers.items():
            weight = read().to(torch.float64)
            left, values, right_t = torch.linalg.svd(weight, full_matrices=False)
            basis = {"right": right_t.mT, "left": left}
            seen = {"singular_values": self._padded(values)}
            for index, side in enumerate(("left", "right")):
                angles, turns = self._angles(name, side, index, basis[side], values, weight.shape, step)
                seen[f"{side}_angles"], seen[f"{side}_turn"] = self._padded(angles), turns.cpu().numpy()
            for variable, column in seen.items():
                columns.setdefault(variable, []).append(column)
        self._warn()
        runs = () if columns["singular_values"][0].ndim == 1 else ("run",)
        return {
            self.probe.prefix + variable: (
                (*runs, "layer", "part" if variable.endswith("turn") else "index"),
                np.stack(values, axis=-2),
            )
            for variable, values in columns.items()
        }

    def _padded(self, values: Tensor) -> np.ndarray:
        missing = self.length - values.shape[-1]
        return torch.nn.functional.pad(values, (0, missing), value=torch.nan).cpu().numpy()

    def _angles(
        self, name: str, side: str, index: int, basis: Tensor, values: Tensor, shape: torch.Size, step: int
    ) -> tuple[Tensor, Tensor]:
        groups = _groups(values.shape[-1], self.probe.top)
        # Beyond min(out, in) the longer side has a null space, whose singular value is 0.
        resolved = _resolved(values, groups, open_end=shape[-2 + index] > values.shape[-1])
        reference = self.probe.reference
        if isinstance(reference, Mapping):
            angles, turns = _against_active(basis, reference[name][index].to(basis), groups)
        else:
            key = f"{name} {side}"
            if key not in self.references and step >= reference:
                self.references[key] = _Reference(basis, resolved)
            if key not in self.references:
                unknown = torch.full_like(values, torch.nan)
                return unknown, unknown.new_full((*values.shape[:-1], 3), torch.nan)
            angles, turns = _against_reference(basis, self.references[key].basis, groups)
            then = self.references[key].resolved
            resolved = (resolved[0] & then[0], resolved[1] & then[1])
        return angles.masked_fill(~resolved[0], torch.nan), turns.masked_fill(~resolved[1], torch.nan)

    def _warn(self) -> None:
        blurred = [key for key, reference in self.references.items() if reference.news()]
        if blurred:
            warnings.warn(
                f"the reference spectrum of {', '.join(blurred)} is degenerate: singular vectors of equal singular "
                "values are arbitrary, so those angles are NaN; give a later step or the active bases as reference",
                stacklevel=4,
            )


class _Reference:
    """Singular vectors of the reference, and which of them are defined; says once if some are not."""

    def __init__(self, basis: Tensor, resolved: tuple[Tensor, Tensor]) -> None:
        self.basis, self.resolved = basis, resolved
        self.told = False

    def news(self) -> bool:
        told, self.told = self.told, True
        return not told and not bool(self.resolved[0].all())


def _groups(length: int, top: int) -> tuple[slice, slice, slice]:
    leading = min(top, length)
    trailing = min(top, length - leading)
    return slice(0, leading), slice(leading, length - trailing), slice(length - trailing, length)


def _resolved(values: Tensor, groups: tuple[slice, slice, slice], *, open_end: bool) -> tuple[Tensor, Tensor]:
    """Which single directions (…, index) and which parts (…, 3) stand apart from their neighbours."""
    infinity = torch.full_like(values[..., :1], torch.inf)
    end = torch.zeros_like(infinity) if open_end else -infinity
    gaps = -torch.diff(values, prepend=infinity, append=end)  # gap i lies above value i
    least = 1e3 * values.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
    apart = gaps > least
    single = apart[..., :-1] & apart[..., 1:]
    parts = torch.stack([apart[..., part.start] & apart[..., part.stop] for part in groups], dim=-1)
    middle = groups[1]
    single[..., middle] = parts[..., 1:2].expand_as(single[..., middle])
    return single, parts


def _against_reference(basis: Tensor, reference: Tensor, groups: tuple[slice, slice, slice]) -> tuple[Tensor, Tensor]:
    cosines = (basis * reference).sum(dim=-2)
    # The sine is the length of what sticks out, which arccos could not see below 1e-8.
    sines = (basis - reference * cosines.unsqueeze(-2)).norm(dim=-2)
    angles = torch.atan2(sines, cosines.abs())
    turns = torch.stack(
        [_largest(principal_angles(basis[..., part], reference[..., part]), basis) for part in groups], dim=-1
    )
    middle = groups[1]
    angles[..., middle] = turns[..., 1:2].expand_as(angles[..., middle])
    return angles, turns


def _against_active(basis: Tensor, active: Tensor, groups: tuple[slice, slice, slice]) -> tuple[Tensor, Tensor]:
    inside = active.mT @ basis
    outside = (basis - active @ inside).norm(dim=-2)
    angles = torch.atan2(outside, inside.norm(dim=-2))
    leading, middle, trailing = groups
    turns = torch.stack(
        [
            _largest(principal_angles(basis[..., leading], active), basis),
            _largest(torch.asin(torch.linalg.svdvals(inside[..., middle]).clamp(max=1.0)), basis),
            _largest(principal_angles(basis[..., trailing], active), basis),
        ],
        dim=-1,
    )
    angles[..., middle] = turns[..., 1:2].expand_as(angles[..., middle])
    return angles, turns


def _largest(angles: Tensor, like: Tensor) -> Tensor:
    return angles[..., 0] if angles.shape[-1] else like.new_zeros(like.shape[:-2])
