"""The law of parsimony as an algorithm: a deep linear network as a small core and a few scalars, exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdyn.arguments import checked_count
from lowdyn.dynamics.frames import Frames, invariant_frames
from lowdyn.dynamics.small import SmallNetwork, starting_scalars
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares


class ReducedNetwork(SmallNetwork):
    """A deep linear network in the coordinates in which it learns; made by :func:`reduce_network`.

    Beside core and scalars it knows where they came from: ``active``, the orthonormal bases B_0 … B_L, which
    never move, and the start, so that ``expand()`` gives the full-width network of the moment.

    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> network = DeepLinearNetwork((40, 40, 40), 0.1, generator=generator)
    >>> small = reduce_network(network, Factorization(low_rank_target(40, 40, rank=2, generator=generator)))
    >>> small.inert_scale.round(decimals=12).tolist(), [tuple(basis.shape) for basis in small.active]
    ([[0.1, 0.1]], [(40, 4), (40, 4), (40, 4)])
    >>> bool((small.expand().end_to_end() - network.end_to_end()).abs().max() < 1e-15)
    True
    """

    def __init__(self, start: list[Tensor], frames: list[Frames], **small: Any) -> None:
        sizes = (start[0].shape[-1], *(weight.shape[-2] for weight in start))
        super().__init__(inert=frames[0].families, sizes=sizes, **small)
        self._start, self._frames = start, frames

    @property
    def active(self) -> tuple[Tensor, ...]:
        """Bases B_0 … B_L of the active subspaces, (d_l, k_l), or (runs, d_l, k_l)."""
        if self.runs is None:
            return self._frames[0].bases
        return tuple(torch.stack(bases) for bases in zip(*(frames.bases for frames in self._frames), strict=True))

    def run(self, index: int) -> ReducedNetwork:
        """Return a copy of one of the networks side by side."""
        if self.runs is None:
            raise ValueError("this network has no dimension of runs; it is one network already")
        return ReducedNetwork(
            [weight[index] for weight in self._start],
            [self._frames[index]],
            core=self.core.run(index),
            scalars=[scalars.run(index) for scalars in self._scalars],
            problem=_single(self._problem, index),
            core_problem=_single(self._core_problem, index),
        )

    def apply(self, layer: int, features: Tensor) -> Tensor:
        """Return W_l x for columns x (d_{l−1}, n): one product with the start, the others with thin matrices."""
        scale, pairs = self._terms(layer)
        outputs = scale * (self._start[layer - 1] @ features)
        return sum((left @ (right.mT @ features) for left, right in pairs), start=outputs)

    def expand(self) -> DeepLinearNetwork:
        """Return the full-width network of this moment, W_l = B_l W̃_l B_{l−1}ᵀ + Σ ρ_l Q_l Π over the families,
        Π the projection on the family."""
        if self.runs is not None:
            whole = [self.run(index).expand().weights for index in range(self.runs)]
            return DeepLinearNetwork.from_weights(torch.stack(weights) for weights in zip(*whole, strict=True))
        weights = []
        for layer, start in enumerate(self._start, start=1):
            scale, pairs = self._terms(layer)
            weights.append(sum((left @ right.mT for left, right in pairs), start=scale * start))
        return DeepLinearNetwork.from_weights(weights)

    def _terms(self, layer: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return W_l as a multiple of its start and thin products: scale and pairs (left, right), left · rightᵀ."""
        if self.runs is not None:
            raise ValueError("several networks side by side; take small.run(i)")
        if not 1 <= checked_count("layer", layer) <= self.depth:
            raise ValueError(f"layer must be 1 … {self.depth}, got {layer}")
        frames, start = self._frames[0], self._start[layer - 1]
        left, right = (basis.to(start) for basis in (frames.bases[layer], frames.bases[layer - 1]))
        multiples = self.inert_scale[:, layer - 1] / frames.init_scales[layer - 1]
        rest = sum(
            (m for m, one in zip(multiples, self.inert, strict=True) if one.bases is None), start=0 * multiples[0]
        )
        pairs = [(left @ self.core.weights[layer - 1] - rest * (start @ right), right)]
        for multiple, family in zip(multiples, self.inert, strict=True):
            if family.bases is not None:
                special = family.bases[layer - 1].to(start)
                pairs.append(((multiple - rest) * (start @ special), special))
        return rest, pairs


def reduce_network(network: DeepLinearNetwork, problem: LeastSquares) -> ReducedNetwork:
    """Return the exact small model of ``network`` under gradient descent on ``problem``.

    Where every W_l starts as a multiple of an orthogonal matrix and the inputs are white (or fewer orthonormal
    samples), S_0 … S_L of :func:`invariant_frames` and their complements evolve alone; on the complement each
    weight stays a multiple of what it was, so that a core of at most 3r x 3r and one scalar per layer and family
    carry everything, under every rule that combines past weights and gradients linearly: schedules, coupled and
    decoupled decay, heavy ball, Nesterov (Yaras et al. 2023, arXiv 2306.01154; theory §2).

    With runs side by side, one core per run. ValueError where the theorem does not apply, see
    :func:`invariant_frames`; masked objectives and elementwise rules such as Adam are not covered by it.

    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> net = DeepLinearNetwork((40, 40, 40), 0.1, generator=generator)
    >>> problem = Factorization(low_rank_target(40, 40, rank=2, generator=generator))
    >>> small = reduce_network(net, problem)
    >>> [tuple(w.shape) for w in small.core.weights], small.inert[0].dim
    ([(4, 4), (4, 4)], 36)
    """
    if not isinstance(network, DeepLinearNetwork):
        raise TypeError(f"only a DeepLinearNetwork is reduced exactly, got {type(network).__name__}")
    if not isinstance(problem, LeastSquares):
        raise TypeError(
            f"the theorem covers Factorization and Regression, not {type(problem).__name__}: a masked or measured "
            "objective moves all directions; compress the network instead"
        )
    if network.runs is not None:
        return _side_by_side(network, problem)
    frames = invariant_frames(network, problem)
    dtype = network.weights[0].dtype
    triples = zip(frames.bases[1:], network.weights, frames.bases[:-1], strict=True)
    return ReducedNetwork(
        [weight.clone() for weight in network.weights],
        [frames],
        core=DeepLinearNetwork.from_weights(
            (left.mT @ (weight.to(torch.float64) @ right)).to(dtype) for left, weight, right in triples
        ),
        scalars=starting_scalars(frames.families, frames.init_scales, dtype),
        problem=problem,
        core_problem=_core_problem(frames, problem, dtype),
    )


def _core_problem(frames: Frames, problem: LeastSquares, dtype: torch.dtype) -> LeastSquares:
    """Return the objective of the core: ½ s ‖W̃ X̃ − Ỹ‖² plus what no matrix reaches."""
    problem = problem.to(torch.float64)
    first, last = frames.bases[0], frames.bases[-1]
    left, values, right = problem.factors()
    correlation = (last.mT @ left * values) @ (right.mT @ first)
    if problem.inputs is None:
        return LeastSquares(None, correlation, problem.scale).to(dtype)
    # X̃ X̃ᵀ = B_0ᵀ X Xᵀ B_0 = α times a projection: as few columns as it has dimensions.
    u, spread, _ = torch.linalg.svd(first.mT @ problem.inputs, full_matrices=False)
    inputs = u[:, spread > 0.5 * frames.stretch**0.5] * frames.stretch**0.5
    fitted = (left * values) @ (right.mT @ problem.inputs) / frames.stretch
    rest = problem.loss_of(fitted - problem.targets)
    return LeastSquares(inputs, correlation @ inputs / frames.stretch, problem.scale, rest).to(dtype)


def _side_by_side(network: DeepLinearNetwork, problem: LeastSquares) -> ReducedNetwork:
    """Reduce networks side by side, one by one, and stack what comes out."""
    assert network.runs is not None
    small = [reduce_network(network.run(index), _single(problem, index)) for index in range(network.runs)]
    kinds = {(one.core.sizes, tuple((f.dim, f.stretch, f.passes) for f in one.inert)) for one in small}
    if len(kinds) > 1:
        raise ValueError(f"the runs reduce to different sizes, {sorted(kinds)}; reduce them one by one")
    problems = [one._core_problem for one in small]
    inputs = [one.inputs for one in problems if one.inputs is not None]
    return ReducedNetwork(
        [weight.clone() for weight in network.weights],
        [one._frames[0] for one in small],
        core=_stacked([one.core for one in small]),
        scalars=[_stacked(list(family)) for family in zip(*(one._scalars for one in small), strict=True)],
        problem=problem,
        core_problem=LeastSquares(
            torch.stack(inputs) if inputs else None,
            torch.stack([one.targets for one in problems]),
            problems[0].scale,
            torch.stack([one.constant for one in problems]),
        ),
    )


def _stacked(networks: list[DeepLinearNetwork]) -> DeepLinearNetwork:
    return DeepLinearNetwork.from_weights(
        torch.stack(weights) for weights in zip(*(one.weights for one in networks), strict=True)
    )


def _single(problem: LeastSquares, index: int) -> LeastSquares:
    """Return the problem of one run, without the leading dimension."""
    if problem.runs is None:
        return problem
    one = problem.select(torch.tensor([index]))
    inputs, targets, constant = one.inputs, one.targets, one.constant
    return LeastSquares(
        inputs[0] if inputs is not None and inputs.ndim == 3 else inputs,
        targets[0] if targets.ndim == 3 else targets,
        one.scale,
        constant[0] if constant.ndim else constant,
    )
