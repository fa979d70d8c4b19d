"""The invariant subspaces of the law of parsimony, found from the start and the data before descent runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lowdyn.linalg import orthonormal_basis
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares

TOLERANCE = 1e-9  # largest departure from orthogonality or whiteness that rounding explains
INDEPENDENT = 1e-10  # sine below which a direction is taken to lie in the span already found


@dataclass(frozen=True)
class Family:
    """Inert directions that share one scale per layer: ``dim`` of them, seen by the data with ``stretch``.

    ``passes`` says whether the last layer lets them through. ``bases`` are orthonormal bases F_0 … F_{L−1} of the
    family, or None for the one family that is all the rest.
    """

    dim: int
    stretch: float
    passes: bool
    bases: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Frames:
    """Orthonormal bases B_0 … B_L of the active subspaces: W_l(t) maps span B_{l−1} into span B_l, for all t.

    ``bases[l]`` is (d_l, k_l); ``init_scales`` are the ε_l of the start; ``stretch`` is the α of X Xᵀ = α P, P the
    identity or a projection; ``families`` are the inert directions, all that is not active.
    """

    bases: tuple[Tensor, ...]
    init_scales: tuple[float, ...]
    stretch: float
    families: tuple[Family, ...]

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

    For orthogonal weights W_l(0) = ε_l Q_l, T = Q_L … Q_1 and X Xᵀ = α P with P the identity (white inputs) or a
    projection (orthonormal samples, fewer than d), S_0 is the smallest space that holds the rows of Φ = Y Xᵀ and
    Tᵀ times its columns and is mapped into itself by P and TᵀT; S_l = Q_l … Q_1 S_0, and S_L also holds the
    columns of Φ (Yaras et al. 2023, arXiv 2306.01154, and theory §2). With rank r its dimension is at most

    - 2r for d_y = d_x, 2 d_y for d_y = r, 3r between and for d_y > d_x;
    - 3r for d_y ≥ d_x and r + 2 d_y for d_y < d_x when the inputs are fewer orthonormal samples.

    ValueError naming the condition, by how much it is violated and the remedy: a start that is not orthogonal,
    inputs that are not white, hidden layers of another width, no room for an inert block.

    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> net = DeepLinearNetwork((20, 20, 20), 0.1, generator=generator)
    >>> frames = invariant_frames(net, Factorization(low_rank_target(20, 20, rank=2, generator=generator)))
    >>> [tuple(basis.shape) for basis in frames.bases], frames.inert_dim
    ([(20, 4), (20, 4), (20, 4)], 16)
    """
    weights = [weight.to(torch.float64) for weight in network.weights]
    if weights[0].ndim != 2:
        raise ValueError("frames are found for one network at a time; take network.run(i)")
    if problem.runs is not None:
        raise ValueError(f"frames are found for one problem at a time, this one holds {problem.runs} runs")
    problem = problem.to(torch.float64, weights[0].device)
    width, (outputs, inputs) = weights[0].shape[1], problem.shape
    if (weights[-1].shape[0], width) != (outputs, inputs):
        raise ValueError(f"the network maps {width} -> {weights[-1].shape[0]}, the problem {inputs} -> {outputs}")
    if any(size != width for size in network.sizes[:-1]):
        raise ValueError(
            f"the theorem needs square weights up to the last; the sizes are {network.sizes}. "
            "Give every hidden layer the width of the input"
        )
    parts = [_orthogonal_part(weight, layer) for layer, weight in enumerate(weights, start=1)]
    orthogonals, scales = [q for q, _ in parts], tuple(scale for _, scale in parts)
    stretch, seen = _whiteness(problem)
    targets, values, rows = problem.factors()
    rank = len(values)
    if rank == 0:
        raise ValueError("the target has rank 0: there is nothing to learn, and every direction is inert")

    def push(basis: Tensor) -> Tensor:
        return reduce(lambda vectors, q: q @ vectors, orthogonals, basis)

    def pull(basis: Tensor) -> Tensor:
        return reduce(lambda vectors, q: q.mT @ vectors, reversed(orthogonals), basis)

    keeps: list[Callable[[Tensor], Tensor]] = []
    if seen is not None:
        keeps.append(lambda basis: seen @ (seen.mT @ basis))
    if outputs < width and (seen is not None or outputs == rank):
        # Two projections need not close; with all outputs active the second maps into what is there already.
        targets = torch.eye(outputs, dtype=torch.float64, device=rows.device)
    elif outputs < width:
        keeps.append(lambda basis: pull(push(basis)))
    first = _closure([rows, pull(targets)], keeps)
    if first.shape[1] >= width:
        raise ValueError(
            f"no room for an inert block: the active subspace fills all {width} dimensions (target of rank {rank}, "
            f"{outputs} outputs); widen the network, or train it as it is"
        )
    bases = [first]
    for q in orthogonals[:-1]:
        bases.append(q @ bases[-1])
    through = orthogonals[-1] @ bases[-1]
    bases.append(through if outputs == width else orthonormal_basis(targets, through, tolerance=INDEPENDENT))
    return Frames(tuple(bases), scales, stretch, _families(bases, orthogonals, stretch, seen))


def _closure(seeds: Sequence[Tensor], keeps: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Return a basis of the smallest space that holds ``seeds`` and that every map of ``keeps`` leaves in itself."""
    basis = orthonormal_basis(*seeds, tolerance=INDEPENDENT)
    while keeps:
        larger = orthonormal_basis(basis, *(keep(basis) for keep in keeps), tolerance=INDEPENDENT)
        if larger.shape[1] == basis.shape[1]:
            break
        basis = larger
    return basis


def _families(
    bases: Sequence[Tensor], orthogonals: Sequence[Tensor], stretch: float, seen: Tensor | None
) -> tuple[Family, ...]:
    """Split the complement of the active subspaces into directions that share their scales."""
    width, active = bases[0].shape
    outputs, reached = bases[-1].shape
    inert = width - active
    if outputs <= reached:  # every output is active: the last layer lets no inert direction through
        return (Family(inert, stretch, passes=False),)
    if outputs < width:
        pulled = reduce(lambda vectors, q: q.mT @ vectors, reversed(orthogonals), torch.eye(outputs).to(bases[0]))
        chosen, rest = pulled, Family(inert, stretch, passes=False)
    elif seen is not None:
        chosen, rest = seen, Family(inert, 0.0, passes=True)
    else:
        return (Family(inert, stretch, passes=True),)
    outside = chosen - bases[0] @ (bases[0].mT @ chosen)
    # Of a projection that commutes with the active one: singular values are 1 or 0, nothing lies between.
    left, values, _ = torch.linalg.svd(outside, full_matrices=False)
    special = [left[:, values > 0.5]]
    for q in orthogonals[:-1]:
        special.append(q @ special[-1])
    dim = special[0].shape[1]
    families = [Family(dim, stretch, passes=True, bases=tuple(special))] if dim else []
    return (*families, *([Family(inert - dim, rest.stretch, rest.passes)] if inert > dim else []))


def _orthogonal_part(weight: Tensor, layer: int) -> tuple[Tensor, float]:
    """Return Q_l and ε_l of a weight ε_l Q_l with orthonormal rows or columns; ValueError if it is none."""
    scale = float(weight.norm()) / min(weight.shape) ** 0.5
    q = weight / scale if scale > 0 else weight
    small = q @ q.mT if weight.shape[0] <= weight.shape[1] else q.mT @ q
    violation = float((small - torch.eye(len(small), dtype=q.dtype, device=q.device)).abs().max())
    if violation > TOLERANCE:
        raise ValueError(
            f"weight {layer} is not a multiple of an orthogonal matrix (W Wᵀ/ε² departs from I by {violation:.1e}); "
            "the theorem starts from DeepLinearNetwork(…, start=orthogonal)"
        )
    return q, scale


def _whiteness(problem: LeastSquares) -> tuple[float, Tensor | None]:
    """Return the α of X Xᵀ = α P and an orthonormal basis of P's range, None where P is the identity."""
    inputs = problem.inputs
    if inputs is None:
        return 1.0, None
    few = inputs.shape[-1] < inputs.shape[-2]
    gram = inputs.mT @ inputs if few else inputs @ inputs.mT
    stretch = float(torch.diagonal(gram).mean())
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    violation = float((gram / stretch - identity).abs().max()) if stretch > 0 else torch.inf
    if violation > TOLERANCE:
        what = "samples are not orthonormal (XᵀX/α" if few else "inputs are not white (X Xᵀ/α"
        remedy = "orthonormalize them" if few else "precondition them with lowdyn.linalg.whiten"
        raise ValueError(f"the {what} departs from I by {violation:.1e}); {remedy}")
    return stretch, inputs / stretch**0.5 if few else None
