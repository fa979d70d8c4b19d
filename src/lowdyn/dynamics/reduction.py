"""The law of parsimony: the frames of the invariant subspaces and the scale of everything outside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.dynamics.descent import gradient_descent
from lowdyn.dynamics.rule import Descent
from lowdyn.linalg import orthonormal_basis
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares
from lowdyn.trajectory import Record

TOLERANCE = 1e-9  # largest departure from orthogonality or whiteness that rounding explains


@dataclass(frozen=True)
class Frames:
    """Orthonormal bases B_0 … B_L of the active subspaces: W_l(t) maps span B_{l−1} into span B_l, for all t.

    ``bases[l]`` is (d_l, k); ``init_scales`` are the ε_l of the start, 0 for a last layer whose complement is
    empty (d_y = r); ``stretch`` is the α of X Xᵀ = α I.
    """

    bases: tuple[Tensor, ...]
    init_scales: tuple[float, ...]
    stretch: float

    @property
    def inert_dim(self) -> int:
        """Dimension d − k of the directions that do not learn."""
        return self.bases[0].shape[0] - self.bases[0].shape[1]

    def by_layer(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the bases (left, right) = (B_l, B_{l−1}) of each weight, by its name in a DeepLinearNetwork."""
        pairs = zip(self.bases[1:], self.bases[:-1], strict=True)
        return {f"W{layer}": pair for layer, pair in enumerate(pairs, start=1)}


def invariant_frames(network: DeepLinearNetwork, problem: LeastSquares) -> Frames:
    """Find the subspaces in which gradient descent will move the weights of ``network``, before it runs.

    Theorem (Yaras et al. 2023, arXiv 2306.01154; theory §2), for orthogonal weights W_l(0) = ε_l Q_l, whitened
    inputs X Xᵀ = α I and Φ = Y Xᵀ = U_P S V_Pᵀ of rank r, with Q = Q_L … Q_1:

    - d_y = d_x = d > 2r: B_0 = orth[V_P, Qᵀ U_P], of at most 2r columns, and B_l = Q_l B_{l−1};
    - d_y = r, d_x = d > 2r: B_0 = orth[V_P, Qᵀ], B_l = Q_l B_{l−1} for l < L, and B_L = I.

    ValueError naming the condition, by how much it is violated and the remedy: a start that is not
    orthogonal, inputs that are not white, shapes that the theorem does not cover, no room for an inert block.

    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> net = DeepLinearNetwork((20, 20, 20), 0.1, generator=generator)
    >>> frames = invariant_frames(net, Factorization(low_rank_target(20, 20, rank=2, generator=generator)))
    >>> [tuple(basis.shape) for basis in frames.bases], frames.inert_dim
    ([(20, 4), (20, 4), (20, 4)], 16)
    """
    weights = [weight.to(torch.float64) for weight in network.weights]
    problem = problem.to(torch.float64, weights[0].device)
    if weights[0].ndim != 2:
        raise ValueError("frames are found for one network at a time; take network.run(i)")
    width, (outputs, inputs) = weights[0].shape[1], problem.shape
    if (weights[-1].shape[0], width) != (outputs, inputs):
        raise ValueError(f"the network maps {width} -> {weights[-1].shape[0]}, the problem {inputs} -> {outputs}")
    if any(size != width for size in network.sizes[:-1]):
        raise ValueError(
            f"the theorem needs square weights up to the last; the sizes are {network.sizes}. "
            "Give every hidden layer the width of the input"
        )
    orthogonals, scales = zip(
        *(_orthogonal_part(weight, layer) for layer, weight in enumerate(weights, 1)), strict=True
    )
    stretch = _whiteness(problem)
    left, values, right_t = torch.linalg.svd(problem.correlation, full_matrices=False)
    rank = int((values > max(outputs, inputs) * torch.finfo(values.dtype).eps * values[0]).sum())
    square = outputs == width
    if not square and outputs != rank:
        raise ValueError(
            f"the target has rank {rank} and {outputs} outputs for {width} inputs; the frames are built for d_y = d_x "
            f"and for d_y = rank"
        )
    targets = left[:, :rank] if square else torch.eye(outputs, dtype=torch.float64, device=left.device)
    pulled = reduce(lambda basis, q: q.mT @ basis, reversed(orthogonals), targets)
    first = orthonormal_basis(right_t[:rank].mT, pulled, tolerance=1e-10)
    if first.shape[1] >= width:
        raise ValueError(
            f"no room for an inert block: the active subspace has {first.shape[1]} dimensions (at most 2·rank, "
            f"rank {rank}) and the width is {width}; widen the network beyond twice the rank"
        )
    bases = [first]
    for q in orthogonals:
        bases.append(q @ bases[-1])
    if not square:
        bases[-1] = targets
        scales = (*scales[:-1], 0.0)
    return Frames(tuple(bases), scales, stretch)


def inert_scales(frames: Frames, problem: LeastSquares, descent: Descent, steps: int, every: int = 1) -> np.ndarray:
    """Return ρ_l(t), the one scale of all inert directions of layer l, at steps 0, every, …, shape (records, L).

    The inert blocks are multiples of an isometry with no target: each obeys the scalar recursion
    ρ_l ← ρ_l (1 − ηλ − ηα Π_{j≠l} ρ_j²) (theory §2). That is the descent of a network of 1 x 1 weights towards
    0, so it is run as that, with every feature of the step rule; when the last layer has no complement its
    scale is 0 and the others only decay.

    >>> frames = Frames((torch.eye(3)[:, :2],) * 3, init_scales=(1.0, 1.0), stretch=1.0)
    >>> from lowdyn.problems import Factorization
    >>> problem = Factorization(torch.zeros(3, 3), reduction="sum")
    >>> inert_scales(frames, problem, Descent(lr=0.1), steps=1)[:, 0].tolist()
    [1.0, 0.9]
    """
    scalars = DeepLinearNetwork.from_weights([[scale]] for scale in frames.init_scales)
    nothing = LeastSquares(None, torch.zeros(1, 1, dtype=torch.float64), problem.scale * frames.stretch)
    trajectory = gradient_descent(scalars, nothing, descent, steps, record=_Scalars(), every=every)
    return np.asarray(trajectory["scale"].values)


class _Scalars:
    """Probe: the weights of a network of 1 x 1 matrices."""

    def begin(self, model: Any) -> _Scalars:
        self.coords: Mapping[str, Any] = {}
        self.model = model
        return self

    def __call__(self, step: int) -> Record:
        return {"scale": (("layer",), np.array([weight.item() for weight in self.model.weights]))}


def _orthogonal_part(weight: Tensor, layer: int) -> tuple[Tensor, float]:
    """Return Q_l and ε_l of a weight ε_l Q_l with orthonormal rows; ValueError if it is none."""
    scale = float(weight.norm()) / min(weight.shape) ** 0.5
    q = weight / scale
    violation = float((q @ q.mT - torch.eye(q.shape[0], dtype=q.dtype, device=q.device)).abs().max())
    if weight.shape[0] > weight.shape[1] or violation > TOLERANCE:
        raise ValueError(
            f"weight {layer} is not a multiple of an orthogonal matrix (W Wᵀ/ε² departs from I by {violation:.1e}); "
            "the theorem starts from DeepLinearNetwork(…, start=orthogonal)"
        )
    return q, scale


def _whiteness(problem: LeastSquares) -> float:
    """Return the α of X Xᵀ = α I; ValueError if the inputs are not white."""
    if problem.inputs is None:
        return 1.0
    gram = problem.inputs @ problem.inputs.mT
    stretch = float(torch.diagonal(gram).mean())
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    violation = float((gram / stretch - identity).abs().max())
    if violation > TOLERANCE:
        raise ValueError(
            f"the inputs are not white (X Xᵀ/α departs from I by {violation:.1e}); "
            "precondition them with lowdyn.linalg.whiten"
        )
    return stretch
