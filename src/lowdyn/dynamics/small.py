"""What is left of a deep linear network when everything inert is a scalar: a core, and a scale per family and layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.arguments import checked_count
from lowdyn.dynamics.chain import Part, total_loss
from lowdyn.dynamics.descent import gradient_descent
from lowdyn.dynamics.frames import Family, Frames
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
    def active(self) -> tuple[Tensor, ...]:
        """Bases B_0 … B_L of the active subspaces, (d_l, k_l), or (runs, d_l, k_l)."""
        raise AttributeError("a small network by itself does not know where in the full width it lies")

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
        return self.spread(layer, torch.linalg.svdvals(self.core.weights[layer - 1]), self.inert_scale)

    def spread(self, layer: int, core: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``core`` values (…, k) and the sizes of the families' ``scales`` (…, families, depth) the same way."""
        there = [place for place, one in enumerate(self.inert) if one.passes or layer < self.depth]
        values = torch.cat([core, scales[..., there, layer - 1].abs()], dim=-1)
        return values, torch.tensor([1] * core.shape[-1] + [self.inert[place].dim for place in there])


def starting_scalars(
    families: tuple[Family, ...], init_scales: tuple[float, ...], dtype: torch.dtype
) -> list[DeepLinearNetwork]:
    """Return the families' scales at the start as networks of 1 x 1 weights: ε_l, or 0 where none pass."""
    scalars = []
    for family in families:
        scales = init_scales if family.passes else (*init_scales[:-1], 0.0)
        scalars.append(DeepLinearNetwork.from_weights(torch.full((1, 1), scale, dtype=dtype) for scale in scales))
    return scalars


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
