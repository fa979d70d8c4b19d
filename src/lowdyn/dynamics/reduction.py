"""The law of parsimony as an algorithm: a deep linear network as a small core and a few scalars, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.arguments import checked_count
from lowdyn.dynamics.chain import Part, total_loss
from lowdyn.dynamics.descent import gradient_descent
from lowdyn.dynamics.frames import Family, Frames, invariant_frames
from lowdyn.dynamics.rule import Descent
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares
from lowdyn.trajectory import Record


class SmallNetwork:
    """The core and the scalars of a deep linear network: what learns, and how the rest rescales.

    - ``core``: a DeepLinearNetwork of the small weights W̃_l = B_lᵀ W_l B_{l−1}, the part that learns;
    - ``inert``: the families of directions that only rescale, and how many directions each has;
    - ``inert_scale``: their scales ρ_l, (families, depth), or (runs, families, depth).

    ``gradient_descent(small, problem, …)`` trains it in place like the full network, in O(L k³) a step.
    """

    compiled = True  # gradient_descent runs it through the compiled loop on a CPU

    def __init__(
        self,
        core: DeepLinearNetwork,
        scalars: list[DeepLinearNetwork],
        inert: tuple[Family, ...],
        problem: LeastSquares,
        core_problem: LeastSquares,
        sizes: tuple[int, ...],
    ) -> None:
        self.core, self.inert, self.sizes = core, inert, sizes
        self._scalars, self._problem, self._core_problem = scalars, problem, core_problem

    @property
    def runs(self) -> int | None:
        """Number of networks side by side; None when there is one."""
        return self.core.runs

    @property
    def depth(self) -> int:
        """Number of weight matrices, L."""
        return self.core.depth

    @property
    def weights(self) -> list[Tensor]:
        """The core's weights, sharing memory."""
        return self.core.weights

    @property
    def rectified(self) -> tuple[bool, ...]:
        """Whether a ReLU follows weight l: never."""
        return self.core.rectified

    @property
    def inert_scale(self) -> Tensor:
        """The scales ρ_l of the families, (families, depth), or (runs, families, depth)."""
        return torch.stack([torch.stack([w[..., 0, 0] for w in one.weights], dim=-1) for one in self._scalars], dim=-2)

    def parts(self, problem: LeastSquares) -> list[Part]:
        """Return what evolves by itself; ValueError when ``problem`` is not the one that was reduced."""
        if not problem.same_as(self._problem):
            raise ValueError("this network was reduced for another problem; call reduce_network with this one")
        parts = [Part(self.core.weights, self._core_problem)]
        for family, scalars in zip(self.inert, self._scalars, strict=True):
            nothing = torch.zeros(1, 1).to(self.core.weights[0])
            towards = LeastSquares(None, nothing, self._core_problem.scale * family.stretch)
            parts.append(Part(scalars.weights, towards, multiplicity=family.dim))
        return parts

    def loss(self) -> Tensor:
        """Return the objective of the full network, without forming it; one number, or one per run."""
        return total_loss(self.parts(self._problem))

    def singular_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the singular values of W_l (…, k + families) and how many directions share each, the core's first.

        Directions that the layer maps to zero because of its shape are left out.
        """
        if not 1 <= checked_count("layer", layer) <= self.depth:
            raise ValueError(f"layer must be 1 … {self.depth}, got {layer}")
        core = torch.linalg.svdvals(self.core.weights[layer - 1])
        there = [place for place, one in enumerate(self.inert) if one.passes or layer < self.depth]
        values = torch.cat([core, self.inert_scale[..., there, layer - 1].abs()], dim=-1)
        return values, torch.tensor([1] * core.shape[-1] + [self.inert[place].dim for place in there])


class ReducedNetwork(SmallNetwork):
    """A deep linear network in the coordinates in which it learns; made by :func:`reduce_network`.

    Beside core and scalars it knows where they came from: ``active``, the orthonormal bases B_0 … B_L, which
    never move, and the start, so that ``expand()`` gives the full-width network of the moment.
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
            f"the theorem covers Factorization and Regression, not {type(problem).__name__}: a masked or weighted "
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


def starting_scalars(
    families: tuple[Family, ...], init_scales: tuple[float, ...], dtype: torch.dtype
) -> list[DeepLinearNetwork]:
    """Return the families' scales at the start as networks of 1 x 1 weights: ε_l, or 0 where none pass."""
    scalars = []
    for family in families:
        scales = init_scales if family.passes else (*init_scales[:-1], 0.0)
        scalars.append(DeepLinearNetwork.from_weights(torch.full((1, 1), scale, dtype=dtype) for scale in scales))
    return scalars


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


def inert_scales(frames: Frames, problem: LeastSquares, descent: Descent, steps: int, every: int = 1) -> np.ndarray:
    """Return ρ_l(t), the scale of the inert directions of layer l, at steps 0, every, …, shape (records, L).

    The inert blocks are multiples of an isometry with no target: each obeys the scalar recursion
    ρ_l ← ρ_l (1 − ηλ − ηα Π_{j≠l} ρ_j²) (theory §2). That is the descent of a network of 1 x 1 weights towards
    0, so it is run as that, with every feature of the step rule; when the last layer has no complement its
    scale is 0 and the others only decay. Of several families it is the first.

    >>> from lowdyn.dynamics.frames import Family
    >>> frames = Frames((torch.eye(3)[:, :2],) * 3, (1.0, 1.0), 1.0, (Family(1, 1.0, passes=True),))
    >>> from lowdyn.problems import Factorization
    >>> problem = Factorization(torch.zeros(3, 3), reduction="sum")
    >>> inert_scales(frames, problem, Descent(lr=0.1), steps=1)[:, 0].tolist()
    [1.0, 0.9]
    """
    family = frames.families[0]
    (scalars,) = starting_scalars((family,), frames.init_scales, torch.float64)
    nothing = LeastSquares(None, torch.zeros(1, 1, dtype=torch.float64), problem.scale * family.stretch)
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
