"""Compressed networks: a wide network's factors replaced by 2r x 2r ones between two thin frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowdyn.arguments import checked_choice, checked_count, checked_number
from lowdyn.linalg import leading_singular_vectors
from lowdyn.networks import DeepLinearNetwork, product_of
from lowdyn.problems import Problem

FrameStart = Callable[[DeepLinearNetwork, Problem, int], tuple[Tensor, Tensor]]
"""``start(network, problem, rank)`` -> orthonormal frames U (d_L, 2·rank) and V (d_0, 2·rank), float64."""


def compress_network(
    network: DeepLinearNetwork,
    problem: Problem,
    rank: int,
    *,
    start: FrameStart | None = None,
    outer: str = "orthonormal",
) -> DeepLinearNetwork:
    """Return a network of width 2·rank in place of ``network``, for ``problem``, before either is trained.

    ``rank`` is the rank r̂ that the answer may have; twice as many directions learn (theory §2). ``start`` chooses the
    frames U and V: :func:`gradient_start` (the default) from the first gradient, :func:`spectral_start` from the data
    alone. ``outer`` says what becomes of them, ε_l the scales of the given weights:

    - "orthonormal" (Yaras et al. 2023, arXiv 2306.01154): L + 2 factors [Vᵀ, ε_1 I, …, ε_L I, U];
    - "merged" (Kwon et al. 2024, arXiv 2311.05061): L factors [ε_1 Vᵀ, ε_2 I, …, ε_L U].

    It is approximate: what is inert is dropped. Trained by the same ``gradient_descent``, the outer factors at their
    own rate, ``Descent(lr, factor_rates=(γ, 1, …, 1, γ))``. With every entry seen γ = 0 will do for "orthonormal" and
    the gradient start; with a mask it stalls and γ = 0.01 does not; "merged" takes γ = 1 … 5 (theory §3).

    ValueError: 2·rank above the smaller side, several runs, sizes that do not fit the problem.

    >>> from lowdyn import Descent, gradient_descent
    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> problem = Factorization(low_rank_target(40, 40, rank=2, generator=generator), reduction="sum")
    >>> wide = DeepLinearNetwork((40, 40, 40, 40), 0.01, generator=generator)
    >>> thin = compress_network(wide, problem, rank=2)
    >>> thin.sizes
    (40, 4, 4, 4, 4, 40)
    >>> loss = gradient_descent(thin, problem, Descent(lr=0.02, factor_rates=(0, 1, 1, 1, 0)), steps=1000)["loss"]
    >>> bool(loss[-1] < 1e-6 * loss[0])
    True
    """
    rank = checked_count("rank", rank, at_least=1)
    sizes = network.sizes
    if network.runs is not None:
        raise ValueError("one network is compressed at a time; take network.run(i)")
    if (sizes[-1], sizes[0]) != problem.shape:
        wanted = f"{problem.shape[1]} -> {problem.shape[0]}"
        raise ValueError(f"the network maps {sizes[0]} -> {sizes[-1]}, the problem {wanted}")
    if 2 * rank > min(problem.shape):
        raise ValueError(
            f"rank {rank} needs frames of {2 * rank} directions, a {problem.shape[0]} x {problem.shape[1]} matrix has "
            f"{min(problem.shape)}; it is small enough to train as it is"
        )
    left, right = (start or gradient_start)(network, problem, rank)
    thin = compressed_factors(left, right, [weight_scale(weight) for weight in network.weights], outer=outer)
    return DeepLinearNetwork.from_weights(weight.to(network.weights[0]) for weight in thin.weights)


def compressed_factors(
    left: Tensor, right: Tensor, init_scales: Sequence[float], *, outer: str = "orthonormal"
) -> DeepLinearNetwork:
    """Return the network [Vᵀ, ε_1 I, …, ε_L I, U] or, ``outer="merged"``, [ε_1 Vᵀ, ε_2 I, …, ε_L U].

    ``left`` is U (d_L, k), ``right`` V (d_0, k), ``init_scales`` are ε_1 … ε_L. The way to a compressed network where
    no wide one could be formed. ValueError for sizes that differ, a merged network of fewer than two scales.

    >>> e = torch.eye(6, dtype=torch.float64)[:, :2]
    >>> [tuple(weight.shape) for weight in compressed_factors(e, e, (0.1, 0.1, 0.1), outer="merged").weights]
    [(2, 6), (2, 2), (6, 2)]
    """
    checked_choice("outer", outer, ("orthonormal", "merged"))
    scales = [checked_number("every init scale", scale, at_least=0.0) for scale in init_scales]
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(f"left {tuple(left.shape)} and right {tuple(right.shape)} must be (d_L, k) and (d_0, k)")
    if outer == "merged" and len(scales) < 2:
        raise ValueError(f"merged outer factors need at least two init scales, got {len(scales)}")
    identity = torch.eye(left.shape[1]).to(left)
    if outer == "orthonormal":
        return DeepLinearNetwork.from_weights([right.mT, *(scale * identity for scale in scales), left])
    inner = [scale * identity for scale in scales[1:-1]]
    return DeepLinearNetwork.from_weights([scales[0] * right.mT, *inner, scales[-1] * left])


def gradient_start(network: DeepLinearNetwork, problem: Problem, rank: int) -> tuple[Tensor, Tensor]:
    """Return U and V (…, 2·rank) of the subspace that the first gradient G_1(0) singles out (theory §3).

    V = orth[top right singular vectors of G_1(0), top right singular vectors of G_1(0)ᵀ W_1(0)], ``rank`` of each:
    the rows of the target and, pulled back through the network, its columns. U = W_{L:1}(0) V with its columns made
    orthonormal by the polar decomposition; from an orthogonal square start that is a division by Πε.

    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> target = low_rank_target(40, 40, rank=2, generator=generator)
    >>> wide = DeepLinearNetwork((40, 40, 40), 0.01, generator=generator)
    >>> left, right = gradient_start(wide, Factorization(target), rank=2)
    >>> left.shape, bool((left @ (left.mT @ target @ right) @ right.mT - target).norm() < 1e-12 * target.norm())
    (torch.Size([40, 4]), True)
    """
    weights = [weight.to(torch.float64) for weight in network.weights]
    first, above = (
        weights[0],
        product_of(weights[1:]) if len(weights) > 1 else torch.eye(len(weights[0])).to(weights[0]),
    )
    gradient = problem.to(torch.float64).gradient_at(weights)
    # Of a sparse problem the gradient is sparse, and multiplies from the left only.
    pulled = above.mT @ gradient if isinstance(gradient, Tensor) else torch.from_numpy((gradient.T @ above.numpy()).T)
    # The triangle of G_1ᵀ has in G_1ᵀ W_1 the same right singular vectors, and spares a square of the longer side.
    shorter = len(pulled) < pulled.shape[1]
    turned = torch.linalg.qr(pulled.mT, mode="r")[1] if shorter else pulled.mT
    rows, columns = (leading_singular_vectors(one, rank)[2] for one in (pulled, turned @ first))
    right, _ = torch.linalg.qr(torch.cat([rows, columns], dim=1))
    left, _, right_t = torch.linalg.svd(above @ (first @ right), full_matrices=False)
    return left @ right_t, right


def spectral_start(network: DeepLinearNetwork, problem: Problem, rank: int) -> tuple[Tensor, Tensor]:
    """Return U and V (…, 2·rank), the top singular vectors of the problem's surrogate of its answer (theory §3).

    The surrogate is Φ itself for a factorization, (1/p) Ω⊙Φ where a share p of the entries is seen, A*(y)/m for m
    measurements. The network is not looked at.

    >>> from lowdyn.problems import Completion
    >>> target = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> wide = DeepLinearNetwork((3, 3, 3), 0.01, generator=torch.Generator().manual_seed(0))
    >>> left, right = spectral_start(wide, Completion(target, target > 0), rank=1)
    >>> torch.linalg.diagonal(left.mT @ target @ right).round(decimals=12).tolist()
    [3.0, 2.0]
    """
    left, _, right = leading_singular_vectors(problem.surrogate(), 2 * rank)
    return left, right


def weight_scale(weight: Tensor) -> float:
    """Return the ε of a weight ε Q with orthonormal rows or columns; of another, its root mean square singular value.

    >>> round(weight_scale(torch.tensor([[0.0, 0.5, 0.0], [0.5, 0.0, 0.0]])), 6)
    0.5
    """
    return float(weight.norm()) / min(weight.shape) ** 0.5
