"""Deep linear networks of any width, drawn from the exact law of their cores: no d x d array anywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowdyn.arguments import checked_count, checked_generator, checked_number
from lowdyn.dynamics.frames import Family
from lowdyn.dynamics.small import SmallNetwork, starting_scalars
from lowdyn.linalg import orthonormal_complement, random_orthogonal
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares
from lowdyn.seeding import drawn_seed


class SampledNetwork(SmallNetwork):
    """The small model of a network that was never formed; made by :func:`sample_reduced_network`.

    It has the core, the inert scales, the loss and singular values of a Haar-orthogonal network of full width, in
    law, and the active bases, drawn when they are first asked for. It has no ``expand()``: a sample of the
    weights on the complement would need d reflections.
    """

    def __init__(self, overlap: Tensor, seed: int, **small: object) -> None:
        super().__init__(**small)  # type: ignore[arg-type]
        self.overlap = overlap
        self._seed = seed
        self._active: tuple[Tensor, ...] | None = None

    @property
    def active(self) -> tuple[Tensor, ...]:
        """Bases B_0 … B_L of the active subspaces, (d_l, k_l): B_0 holds V_P, B_L the columns U_P of the target;
        those between are independent and uniform."""
        if self._active is None:
            self._active = self._draw_active()
        return self._active

    def _draw_active(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self._seed)
        left, values, right = self._problem.factors()
        rank = len(values)
        first = torch.cat([right, _frame_outside(right, rank, generator)], dim=1)
        between = [
            random_orthogonal(size, 2 * rank, generator=generator, dtype=first.dtype) for size in self.sizes[1:-1]
        ]
        if left.shape[0] == rank:
            return (first, *between, torch.eye(rank, dtype=first.dtype))
        # B_Lᵀ U_P = C is fixed by the core; the rest of B_L is uniform in the complement of U_P.
        fixed = _target_in_frame(self.overlap)
        outside = _frame_outside(left, rank, generator)
        return (first, *between, left @ fixed.mT + outside @ orthonormal_complement(fixed).mT)


def sample_reduced_network(
    problem: LeastSquares, depth: int, init_scale: float, *, generator: torch.Generator
) -> SampledNetwork:
    """Draw the small model of a Haar-orthogonal network of ``depth`` layers on a factorization problem.

    The core depends on the start W_l(0) = ε Q_l only through the r x r overlap O = V_Pᵀ Qᵀ U_P, the corner block of
    a Haar matrix, which needs a Gaussian r x r matrix and a Wishart factor of d − r degrees of freedom
    (Bartlett's decomposition): O(r³), whatever the width. In frames B_0 = [V_P, N], B_L = Q B_0 the target is
    [O; R] S [I 0] with RᵀR = I − OᵀO (theory §2). Core, inert scales, loss and frames have exactly the law that
    :func:`lowdyn.dynamics.reduce_network` gives for a drawn network.

    The problem is a factorization with d_y = d_x or d_y = r; one that knows its factors
    (:class:`~lowdyn.problems.FactoredTarget`) can have any width. ValueError for other problems and where no room
    is left for an inert block.

    >>> from lowdyn.problems import FactoredTarget
    >>> generator = torch.Generator().manual_seed(0)
    >>> u, v = (random_orthogonal(100_000, 2, generator=generator) for _ in range(2))
    >>> problem = FactoredTarget(u, torch.tensor([2.0, 1.0]), v, reduction="sum")
    >>> small = sample_reduced_network(problem, depth=3, init_scale=0.1, generator=generator)
    >>> small.core.sizes, small.inert[0].dim
    ((4, 4, 4, 4), 99996)
    """
    depth = checked_count("depth", depth, at_least=1)
    init_scale = checked_number("init_scale", init_scale, at_least=torch.finfo(torch.float64).tiny)
    checked_generator(generator)
    if problem.inputs is not None:
        raise ValueError("sampling is for factorization (no inputs); reduce a drawn network with reduce_network")
    (outputs, width), (left, values, _) = problem.shape, problem.factors()
    rank = len(values)
    if outputs not in (width, rank):
        raise ValueError(f"sampling needs d_y = d_x or d_y = rank; here d_y = {outputs}, d_x = {width}, rank {rank}")
    if width <= 2 * rank:
        raise ValueError(
            f"no room for an inert block: width {width} with a target of rank {rank}; needs more than {2 * rank}"
        )
    overlap = _haar_corner(width, rank, generator)
    fixed = _target_in_frame(overlap)
    inside = torch.cat([torch.diag(values.to(torch.float64)), torch.zeros(rank, rank, dtype=torch.float64)], dim=1)
    square = outputs == width
    weights = [init_scale * torch.eye(2 * rank, dtype=torch.float64) for _ in range(depth)]
    if not square:
        # The last layer and the target in the outputs' own coordinates: W̃_L(0) = ε U_P [Oᵀ Rᵀ], Φ̃ = U_P S [I 0].
        weights[-1] = init_scale * left @ fixed.mT
    family = Family(width - 2 * rank, 1.0, passes=square)
    seed = drawn_seed(generator, below=2**62)
    return SampledNetwork(
        overlap,
        seed,
        core=DeepLinearNetwork.from_weights(weights),
        scalars=starting_scalars((family,), (init_scale,) * depth, torch.float64),
        inert=(family,),
        problem=problem,
        core_problem=LeastSquares(None, (fixed if square else left) @ inside, problem.scale),
        sizes=(*[width] * depth, outputs),
    )


def _haar_corner(width: int, rank: int, generator: torch.Generator) -> Tensor:
    """Draw the r x r corner block of a Haar-distributed orthogonal matrix of ``width``.

    The first r columns of such a matrix are G R⁻¹, G Gaussian and GᵀG = RᵀR. Only G's first r rows are drawn; of the
    others, the Wishart matrix AAᵀ, by Bartlett: A lower triangular, squares of its diagonal χ² with d − r − i
    degrees of freedom.
    """
    seed = drawn_seed(generator, below=2**62)
    top = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    factor = torch.randn(rank, rank, generator=generator, dtype=torch.float64).tril(-1)
    # torch offers no χ² with a generator of one's own.
    squares = np.random.default_rng(seed).chisquare(width - rank - np.arange(rank))
    factor += torch.diag(torch.from_numpy(np.sqrt(squares)))
    upper = torch.linalg.cholesky(top.mT @ top + factor @ factor.mT, upper=True)
    return torch.linalg.solve_triangular(upper, top, upper=True, left=False)


def _target_in_frame(overlap: Tensor) -> Tensor:
    """Return C = [O; R] (2r, r) with orthonormal columns: the target's columns U_P in the basis B_L = Q B_0."""
    rank = len(overlap)
    rest = torch.linalg.cholesky(torch.eye(rank, dtype=overlap.dtype) - overlap.mT @ overlap, upper=True)
    return torch.cat([overlap, rest])


def _frame_outside(basis: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a uniform frame (d, columns) orthogonal to an orthonormal ``basis``."""
    gaussian = torch.randn(basis.shape[0], columns, generator=generator, dtype=basis.dtype)
    for _ in range(2):  # once more, against rounding
        gaussian = gaussian - basis @ (basis.mT @ gaussian)
        gaussian, _ = torch.linalg.qr(gaussian)
    return gaussian
