"""Singular values and the turning of singular subspaces, of every weight matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_choice, checked_count, checked_number
from lowdyn.dynamics.small import SmallNetwork
from lowdyn.observe.enclosure import worthwhile
from lowdyn.observe.following import Followed
from lowdyn.observe.matrices import WeightMatrix, select, weight_matrices
from lowdyn.observe.reduced import ReducedSpectraLook
from lowdyn.observe.sharing import looks, states
from lowdyn.observe.subspaces import checked_basis
from lowdyn.observe.summary import QUANTILES
from lowdyn.observe.turning import warn_of
from lowdyn.trajectory import Record

Bases = Mapping[str, tuple[Tensor, Tensor]]
PARTS = ("leading", "middle", "trailing")
METHODS = ("auto", "exact", "warm")
# Last dimension of each variable; those not named here have none but the layer.
LAST = {
    **dict.fromkeys(("singular_values", "value_bounds"), "index"),
    **dict.fromkeys(("right_angles", "left_angles", "right_angle_bounds", "left_angle_bounds"), "index"),
    **dict.fromkeys(("right_turn", "left_turn", "right_turn_bounds", "left_turn_bounds"), "part"),
    **dict.fromkeys(("move_values", "move_bounds"), "move"),
    "bulk": "quantile",
}


@dataclass(frozen=True)
class Spectra:
    """Probe: singular values of each weight, how far its singular subspaces have turned, and where it has moved.

    ``layers`` is a pattern searched in the names of the weights (:func:`~lowdyn.observe.weight_matrices` says what
    these are: linear layers, queries, keys and values, convolutions, …; all but embeddings by default). ``top``
    leading and as many trailing directions are followed one by one, those between them as one subspace.
    ``reference`` is the step whose singular vectors the angles are measured against (the first record at or
    after it), or a mapping from layer name to orthonormal bases (left, right) of active subspaces: then
    leading and trailing directions are measured against the active subspace, the middle against its
    orthogonal complement, once QR in float64 has taken out of the bases what rounding left there. ``prefix`` goes
    before the variables' names, so that several can look at once.

    What it records, all in float64 (``layer`` by name, ``index`` from 0, descending singular values; NaN where
    a layer has fewer than the longest; a dimension ``run`` in front for networks side by side):

    - ``singular_values``, ``value_bounds`` (layer, index): σ̂_i, and a bound on abs(σ_i − σ̂_i)
    - ``right_angles``, ``left_angles`` (layer, index), radians: between v_i(t), u_i(t) and their reference;
      the middle indices share the largest principal angle of the middle subspace
    - ``right_turn``, ``left_turn`` (layer, part), radians: largest principal angle of the leading, middle and
      trailing subspace
    - ``move_values``, ``move_bounds`` (layer, move): the ``top`` singular values of W(t) − W(reference), which finds
      leading and trailing movers alike, with their bounds; ``move_norm``, its Frobenius norm, and
      ``outside_energy`` (layer), the share of its energy ‖·‖²_F outside the top. With bases, since the first record
    - ``numerical_rank``, ``stable_rank``, ``effective_rank`` (layer), as :class:`~lowdyn.observe.summary.Summary`
      has them; ``bulk`` (layer, quantile), quantiles of the values after the ``top``, and ``bulk_rms`` (layer)
    - ``right_angle_bounds``, ``left_angle_bounds`` (layer, index), ``right_turn_bounds``, ``left_turn_bounds``
      (layer, part), and ``move_norm_bound``, ``outside_energy_bound``, ``numerical_rank_bound``,
      ``stable_rank_bound``, ``effective_rank_bound``, ``bulk_bound`` (of every quantile), ``bulk_rms_bound`` (layer):
      how far each of these may be from what it is of the weight itself; NaN where there is no number to bound
    - ``matrix`` (layer), a coordinate: how the parameter is read as a matrix, such as ``out x in·3·3``
    - ``exact`` (layer): 1 for a record by SVD, 0 for a warm one

    A singular vector is defined only as well as its singular value stands apart: where the reference, or the
    present matrix, is degenerate (a gap below ``1e3·d·eps·σ_1``, of a warm record below ten times its rounding),
    the angle is NaN, and a degenerate reference gives a warning. An orthogonal start is degenerate through and
    through; take ``reference=1``.

    Bounds b_i on σ_i, and one on ‖W‖_F (4e-6 of it in float32), bound the rest, at the extremes of what agrees with
    them: ``stable_rank`` lies in (‖W‖_F/(σ̂_1 ± b_1))²; ``bulk_rms`` is √((‖W‖_F² − Σ_{i ≤ top} σ_i²)/n'), n'
    values being left, and lies where each σ_i is σ̂_i ± b_i; ``outside_energy`` is 1 − Σ σ_i²/‖·‖_F² and likewise. By
    SVD, with one bound on all values, quantiles and root mean square move by no more than it, and
    :mod:`lowdyn.observe.error_bounds` has the ranks. An angle is off by what the present vectors and those of the
    reference may be turned: a bound on values over the gap to the next (Wedin), a residual over it (Davis and Kahan)
    of a warm record; and by what the reference lost where it is stored in a narrower type than float64. Where values
    do not stand apart by more than their bounds, as within the flat bulk of a large matrix, a bound on an angle is
    π/2, which says nothing.

    ``method`` "exact" takes an SVD in float64 each time; its bound is max(out, in)·eps·σ_1, and a record costs
    O(out·in·min(out, in)). "warm" does so at the first record and at the reference; between, for matrices whose
    shorter side is at least 11·(top + 16), it refines the last record's subspace in a few products
    (:func:`~lowdyn.observe.enclosure.enclose` has the method and the proof of its bound). Such a record gives the
    ``top`` values, aimed at 1e-4 relative, their bounds, the leading angles, the top of the move, ``stable_rank``
    and ``bulk_rms``; the rest is NaN. The bound is on the i-th value, not on some value near it: it fails, for all
    values of a matrix together, with probability 1e-9 a record, over draws of the probe's own generator, and takes
    rounding as 4√d·u·σ_1. It is quadratically small where a value stands above the bulk, and some 5 to 10 % of σ_1
    within a flat bulk. Where it exceeds ``tolerance``·σ_1, or the values do not settle, the record is exact.
    "auto" is "warm" except for the factors of a deep linear network, whose laws are checked to the last digit.

    As soon as one layer is warm, ``index`` has the leading 0 … top − 1 and the trailing −top … −1, as Python counts.
    A warm layer holds its start, its singular vectors at the reference and two narrow blocks: about three times the
    weight's memory. Weights are read from parameters. Those sharded over processes (FSDP2) are gathered, one
    at a time, and divided among the processes, each of which looks at its share, holds what that needs and gets the
    whole record; so every process must record at the same step.

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
    method: str = "auto"
    tolerance: float = 0.15

    def __post_init__(self) -> None:
        checked_count("top", self.top)
        checked_choice("method", self.method, METHODS)
        checked_number("tolerance", self.tolerance, at_least=0.0)
        if not isinstance(self.reference, Mapping):
            checked_count("reference", self.reference)

    def begin(self, model: nn.Module | SmallNetwork) -> SpectraLook | ReducedSpectraLook:
        """Start looking at ``model``, a module or a reduced network; nothing is read before the first record."""
        if isinstance(model, SmallNetwork):
            if isinstance(self.reference, Mapping) or self.layers is not None:
                raise ValueError("of a reduced network Spectra records every layer, against a step")
            return ReducedSpectraLook(model, self.top, self.reference, self.prefix)
        matrices = weight_matrices(model, self.layers)
        if isinstance(self.reference, Mapping):
            for name in matrices:
                select(list(self.reference), f"^{re.escape(name)}$", "reference basis")
        return SpectraLook(matrices, self)


class SpectraLook:
    """Spectra of one model; holds what the later looks are measured against."""

    def __init__(self, matrices: Mapping[str, WeightMatrix], probe: Spectra) -> None:
        self.probe = probe
        self.followed = {name: _followed(name, matrix, probe) for name, matrix in matrices.items()}
        self.length = max(one.length for one in self.followed.values())
        self.compact = any(one.warm for one in self.followed.values())
        top, prefix = probe.top, probe.prefix
        self.moves = min(top, self.length)
        # Dimensions whose length depends on ``top`` are the probe's own: two may follow different numbers.
        self.dims = {"index": f"{prefix}index" if self.compact else "index", "move": f"{prefix}move"}
        self.coords: dict[str, Any] = {
            "layer": list(matrices),
            "matrix": ("layer", [matrix.reading.shown for matrix in matrices.values()]),
            self.dims["index"]: np.r_[0:top, -top:0] if self.compact else np.arange(self.length),
            "part": list(PARTS),
            self.dims["move"]: np.arange(self.moves),
            "quantile": list(QUANTILES),
        }

    def __call__(self, step: int) -> Record:
        """Return the record of the present weights."""
        columns: dict[str, list[np.ndarray]] = {}
        for seen in looks(list(self.followed.values()), step):
            for variable, value in seen.items():
                columns.setdefault(variable, []).append(self._placed(variable, value).cpu().numpy())
        warn_of(
            (f"{name} {side}", reference)
            for name, one in self.followed.items()
            for side, reference in one.references.items()
        )
        runs = () if columns["exact"][0].ndim == 0 else ("run",)
        last = {variable: (self.dims.get(dim, dim),) for variable, dim in LAST.items()}
        return {
            self.probe.prefix + variable: (
                (*runs, "layer", *last.get(variable, ())),
                np.stack(values, axis=-2 if variable in LAST else -1),
            )
            for variable, values in columns.items()
        }

    def _placed(self, variable: str, value: Tensor) -> Tensor:
        """Put one layer's values where the longest layer's are, or its ends at the ends."""
        dim = LAST.get(variable)
        if dim not in ("index", "move"):
            return value
        top, length = self.probe.top, value.shape[-1]
        if dim == "index" and self.compact:
            leading = min(top, length)
            trailing = min(top, length - leading)
            gap = value.new_full((*value.shape[:-1], 2 * top - leading - trailing), torch.nan)
            return torch.cat([value[..., :leading], gap, value[..., length - trailing :]], dim=-1)
        wanted = self.length if dim == "index" else self.moves
        return torch.nn.functional.pad(value, (0, wanted - length), value=torch.nan)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything later looks depend on, as tensors by name: references, starts, blocks, generators.

        Of a model that is spread over processes (FSDP2) every process must ask.
        """
        return {
            f"{place}.{key}": value
            for place, state in enumerate(states(list(self.followed.values())))
            for key, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict` of the same probe on the same model; ValueError for one of other weights."""
        held: dict[str, dict[str, Tensor]] = {}
        for place, name in enumerate(self.followed):
            own = f"{place}."
            held[name] = {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
            self.followed[name].check(name, held[name])
        for name, one in self.followed.items():
            one.restore(held[name])


def _followed(name: str, matrix: WeightMatrix, probe: Spectra) -> Followed:
    warm = probe.method == "warm" or (probe.method == "auto" and not matrix.exact)
    bases = _checked(name, matrix.shape, probe.reference[name]) if isinstance(probe.reference, Mapping) else None
    return Followed(
        matrix,
        probe.top,
        after=0 if isinstance(probe.reference, Mapping) else probe.reference,
        bases=bases,
        warm=warm and worthwhile(matrix.shape, probe.top),
        tolerance=probe.tolerance,
    )


def _checked(name: str, shape: tuple[int, ...], bases: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    left, right = bases
    left, right = (
        checked_basis(f"reference[{name!r}] ({side})", one) for side, one in (("left", left), ("right", right))
    )
    fits = all(one.shape[:-2] in ((), shape[:-2]) for one in (left, right))
    if not fits or (left.shape[-2], right.shape[-2]) != shape[-2:]:
        raise ValueError(
            f"reference[{name!r}] must be bases (out, k) and (in, m) for the weight {shape}, got {tuple(left.shape)} "
            f"and {tuple(right.shape)}"
        )
    return left, right
