"""Singular values and the turning of singular subspaces, of every weight matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_count
from lowdyn.dynamics.small import SmallNetwork
from lowdyn.observe.matrices import select, weight_matrices
from lowdyn.observe.reduced import ReducedSpectraLook
from lowdyn.observe.turning import Reference, against_active, against_reference, groups_of, resolved_of, warn_of
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

    def begin(self, model: nn.Module | SmallNetwork) -> SpectraLook | ReducedSpectraLook:
        """Start looking at ``model``, a module or a reduced network; nothing is read before the first record."""
        if isinstance(model, SmallNetwork):
            if isinstance(self.reference, Mapping) or self.layers is not None:
                raise ValueError("of a reduced network Spectra records every layer, against a step")
            return ReducedSpectraLook(model, self.top, self.reference, self.prefix)
        readers = weight_matrices(model, self.layers)
        if isinstance(self.reference, Mapping):
            for name in readers:
                select(list(self.reference), f"^{re.escape(name)}$", "reference basis")
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
        self.references: dict[str, Reference] = {}

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
        warn_of(self.references.items())
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
        groups = groups_of(values.shape[-1], self.probe.top)
        # Beyond min(out, in) the longer side has a null space, whose singular value is 0.
        resolved = resolved_of(values, groups, open_end=shape[-2 + index] > values.shape[-1])
        reference = self.probe.reference
        if isinstance(reference, Mapping):
            angles, turns = against_active(basis, reference[name][index].to(basis), groups)
        else:
            key = f"{name} {side}"
            if key not in self.references and step >= reference:
                self.references[key] = Reference(basis, resolved)
            if key not in self.references:
                unknown = torch.full_like(values, torch.nan)
                return unknown, unknown.new_full((*values.shape[:-1], 3), torch.nan)
            angles, turns = against_reference(basis, self.references[key].basis, groups)
            then = self.references[key].resolved
            resolved = (resolved[0] & then[0], resolved[1] & then[1])
        return angles.masked_fill(~resolved[0], torch.nan), turns.masked_fill(~resolved[1], torch.nan)
