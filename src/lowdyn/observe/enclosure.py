"""The leading singular values of a large matrix from a warm block, enclosed from below and from above.

A block of right singular vectors of an earlier look is a good start for the present matrix W. Its Krylov space for
A = WᵀW gives Ritz values, which are never too large. What keeps a true value from being larger is a bound on W outside
that space, and the certificate for it is random: no method that sees W through a few products can do without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from lowdyn.observe import error_bounds

EXTRA = 16  # columns of the block beyond those asked for: the gap to the next value sets the pace of convergence
KEPT = 4  # of these, left by the probes: a direction that the block has missed enters through them
BLOCKS = 7  # most blocks of the Krylov space
AIM = 1e-4  # relative error of a value, as estimated, at which the space stops growing
PROBES, DEGREE = 16, 5  # columns and products of the certificate
FAILURE = 1e-9  # probability of its failing
SUMMED = 128  # squares that are summed in the matrix's own precision, before the rest is in float64


def worthwhile(shape: tuple[int, ...], top: int) -> bool:
    """Whether a matrix is large enough for its Krylov space to be a small part of it, and cheaper than its SVD.

    >>> worthwhile((1024, 384), 16), worthwhile((10, 1024), 16), worthwhile((2, 1024, 1024), 16)
    (True, False, False)
    """
    return len(shape) == 2 and top > 0 and min(shape) >= (BLOCKS + 4) * (top + EXTRA)


@dataclass(frozen=True, eq=False)
class Enclosure:
    """The ``top`` singular values of a matrix (out, in), float64, with what is known about their error.

    ``values`` (top,) are Ritz values, descending, ``left`` (out, top) and ``right`` (in, top) their vectors,
    ``bounds`` (top,) satisfy |σ_i − values_i| ≤ bounds_i; ``turned`` are bounds, in radians, on the largest
    principal angle between the spans of the computed and of the true leading vectors, left and right, and
    ``single_turned`` (top,) on the angle of each to its own, π/2 where nothing is known; ``next_value`` is the Ritz
    value after the last, ``rounding`` the part of every bound that no gap makes smaller. ``settled`` says whether the
    error left in the values is estimated below 1e-4 of them. ``norm`` is ‖W‖_F to ``norm_bound``. ``block`` is where
    the next look begins.
    """

    values: Tensor
    bounds: Tensor
    left: Tensor
    right: Tensor
    turned: tuple[float, float]
    single_turned: tuple[Tensor, Tensor]
    next_value: float
    rounding: float
    norm: float
    norm_bound: float
    settled: bool
    block: Tensor


@dataclass(frozen=True, eq=False)
class _Space:
    """A basis P as rows, WP, what couples its last block to the outside, and the eigenpairs of PᵀAP, descending."""

    basis: Tensor
    images: Tensor
    coupling: Tensor
    ritz: Tensor
    vectors: Tensor
    settled: bool


def enclose(matrix: Tensor, block: Tensor, top: int, generator: torch.Generator) -> Enclosure:
    """Enclose the ``top`` leading singular values of ``matrix`` (out, in), out ≥ in, starting from ``block`` (in, k).

    With P the leading Ritz vectors in the block Krylov space of A = WᵀW, B = PᵀAP the diagonal of their values, and R
    the part of AP outside P, A is at most [[B, Rᵀ], [R, c·I]] for any c ≥ ‖W(I − PPᵀ)‖₂². So, for every i ≤ top,

        B_ii ≤ σ_i² ≤ λ_i([[B, Rᵀ], [R, c·I]])

    where the right side is an eigenvalue problem of three blocks' size. It is quadratic in R where a value lies above
    c, and tends to c where none does. The bound holds for the i-th value, not just for some value near, because c comes
    from :func:`outside_bound`: it may be too small with probability 1e-9 a look over the draws of ``generator``, which
    are new every time and so independent of the matrix. Products are in the matrix's own precision u; their rounding
    is taken as a perturbation of W of norm 4√in·u·σ_1, the square-root law of Higham and Mary (2019), and is added.

    Angles: with R_V the columns of R that belong to the top values, on the right sin θ ≤ ‖R_V‖/(B_top − λ⁺_{top+1}),
    λ⁺ the upper side above (Davis and Kahan 1970); on the left the same for WWᵀ, with √c ‖R_V B_V^(-1/2)‖. For each
    direction alone the same with its column of R, over the distance of its B_ii to [B_jj, λ⁺_j] for every j ≠ i. What
    rounding does to residuals, to B and to λ⁺ is added.

    ValueError for NaN or infinity.

    >>> generator = torch.Generator().manual_seed(0)
    >>> matrix = torch.diag(0.9 ** torch.arange(300, dtype=torch.float64))
    >>> block = torch.linalg.qr(torch.randn(300, 2 + EXTRA, generator=generator, dtype=torch.float64))[0]
    >>> found = enclose(matrix, block, 2, generator)
    >>> [round(value, 4) for value in found.values.tolist()], bool((found.bounds < 1e-4).all())
    ([1.0, 0.9], True)
    """
    rows, columns = matrix.shape
    parts = [torch.linalg.vector_norm(part, dim=1) for part in torch.split(matrix, SUMMED, dim=1)]
    norm = float(torch.linalg.vector_norm(torch.stack(parts), dtype=torch.float64))
    if not 1e-12 < norm < 1e12:  # squares of float32 may have left its range
        largest = float(matrix.abs().max())
        if not math.isfinite(largest):
            raise ValueError(f"the matrix {tuple(matrix.shape)} holds values that are NaN or infinite")
        if largest > 0.0:
            scale = 2.0 ** (math.frexp(largest)[1] - 1)  # a power of two: dividing by it rounds nothing
            found = enclose(matrix / scale, block, top, generator)
            lengths = ("values", "bounds", "next_value", "rounding", "norm", "norm_bound")
            return replace(found, **{name: getattr(found, name) * scale for name in lengths})
        nothing = torch.zeros(top, dtype=torch.float64, device=matrix.device)
        left = torch.eye(rows, top, dtype=torch.float64, device=matrix.device)
        unknown, singly = (math.pi / 2, math.pi / 2), (nothing + math.pi / 2, nothing + math.pi / 2)
        return Enclosure(nothing, nothing, left, left[:columns], unknown, singly, 0.0, 0.0, 0.0, 0.0, True, block)
    width = block.shape[1]
    space = _krylov(matrix, block, top, norm, generator)
    # Of the space, the better half is told apart from the outside: it costs less, and hardly bounds worse.
    ritz, mixed = space.ritz[: 2 * width], space.vectors[:, : 2 * width]
    basis = (mixed.mT.to(matrix) @ space.basis).mT
    coupling = space.coupling @ mixed[-width:]
    outside, probes = outside_bound(matrix, basis, norm, generator)
    values = ritz[:top].clamp(min=0.0).sqrt()
    slack = 4 * math.sqrt(columns) * torch.finfo(matrix.dtype).eps / 2 * float(values[0])
    # A sum of n squares is off by no more than n·u of itself, in whatever order.
    spread = (SUMMED / 2 + 2) * torch.finfo(matrix.dtype).eps / 2 + rows * columns * error_bounds.EPS
    outside = min(outside, error_bounds.of_remainder(ritz, spread, slack))
    size = len(ritz)
    whole = torch.diag(torch.cat([ritz, ritz.new_full((width,), outside)]))
    whole[size:, :size] = coupling
    whole[:size, size:] = coupling.mT
    upper = torch.linalg.eigvalsh(whole).flip(-1).clamp(min=0.0)
    bounds = (upper[:top].sqrt() - values).clamp(min=0.0) + slack
    turned, singly = error_bounds.of_ritz_vectors(values, upper[: top + 1].sqrt(), coupling[:, :top], outside, slack)
    images = space.images @ mixed[:, :top].to(matrix)
    return Enclosure(
        values=values * norm,
        bounds=bounds * norm,
        left=images.to(torch.float64) / torch.where(values > 0, values, 1.0),
        right=basis[:, :top].to(torch.float64),
        turned=turned,
        single_turned=singly,
        next_value=math.sqrt(max(0.0, float(ritz[top]))) * norm,
        rounding=slack * norm,
        norm=norm,
        norm_bound=spread * norm,
        settled=space.settled,
        block=torch.linalg.qr(torch.cat([basis[:, : width - KEPT], probes], dim=1))[0],
    )


def _krylov(matrix: Tensor, block: Tensor, top: int, norm: float, generator: torch.Generator) -> _Space:
    """Grow the Krylov space of ``block`` until the ``top`` Ritz values settle, or it is ``BLOCKS`` blocks wide."""
    space, fresh = block.mT.contiguous(), matrix @ block / norm
    images, core = fresh, _product(fresh, fresh)
    ritz, vectors = torch.linalg.eigh(core)
    change: Tensor | None = None
    while True:
        residual = _outside(fresh.mT @ matrix / norm, space)
        direction, coupling = torch.linalg.qr(residual.mT)
        coupling = coupling.to(core)
        settled = False
        if change is not None:
            bulk = max(0.0, 1.0 - float(ritz.sum())) / max(1, matrix.shape[1] - len(space))
            settled = _remaining(coupling @ vectors[-len(coupling) :, -top:], ritz[-top:], change, bulk) < AIM
        if settled or len(space) == BLOCKS * block.shape[1]:
            return _Space(space, images, coupling, ritz.flip(0), vectors.flip(1), settled)
        direction = direction.mT
        inside = direction @ space.mT
        if float(inside.abs().max()) > 4 * torch.finfo(matrix.dtype).eps:
            # Where the residual was all rounding, it may still lie in the space: cleaned once more, at unit length.
            direction = direction - inside @ space
            lost = direction.norm(dim=1, keepdim=True) < 0.5
            if bool(lost.any()):  # the space holds its own image: what else there is, only chance can find
                drawn = torch.randn(direction.shape, generator=generator, dtype=direction.dtype).to(direction.device)
                direction = _outside(torch.where(lost, drawn / math.sqrt(drawn.shape[1]), direction), space)
            direction = torch.linalg.qr(direction.mT)[0].mT
        fresh = matrix @ direction.mT / norm
        space, images = torch.cat([space, direction]), torch.cat([images, fresh], dim=1)
        across = _product(images, fresh)
        core = torch.cat([torch.cat([core, across[: len(core)]], dim=1), across.mT])
        before = ritz
        ritz, vectors = torch.linalg.eigh(core)
        change = (ritz[-top:] - before[-top:]).clamp(min=0.0)


def _outside(rows: Tensor, space: Tensor) -> Tensor:
    """Return ``rows`` (k, in) less their parts in the span of the orthonormal rows of ``space`` (m, in)."""
    # Vectors are rows here: mixing row-major with column-major blocks costs as much as the products.
    return rows - (rows @ space.mT) @ space


def _product(first: Tensor, second: Tensor) -> Tensor:
    return first.to(torch.float64).mT @ second.to(torch.float64)


def _remaining(residual: Tensor, ritz: Tensor, change: Tensor, bulk: float) -> float:
    """Estimate the largest relative error left in σ from the ``residual`` (k, top) of the Ritz vectors of A.

    To second order the next block raises θ_i by ‖r_i‖²/(θ_i − μ), μ where the rest of A lies, here its mean ``bulk``;
    what comes after falls as if geometrically from the last ``change`` on. The next block lies above the mean: over
    training runs what was left came to three times this estimate at most, so three times is what is returned.
    """
    following = residual.square().sum(dim=0) / (ritz - bulk).clamp(min=1e-3 * float(ritz[-1]))
    rate = torch.where(change > 0, following / change, 0.0).clamp(max=0.9)
    return float((3 * following / (1 - rate) / (2 * ritz.clamp(min=1e-6 * float(ritz[-1])))).max())


def outside_bound(matrix: Tensor, space: Tensor, norm: float, generator: torch.Generator) -> tuple[float, Tensor]:
    """Return c ≥ ‖W(I − PPᵀ)‖₂²/norm², but for a probability of 1e-9, and four directions large outside P.

    P is ``space`` (in, m). Lanczos with the inner product of whole blocks, from a Gaussian block Ω of b columns, builds
    the polynomials p_j orthonormal for the measure Σ_i ‖vᵢᵀΩ‖² δ(λ_i) over the eigenpairs of
    (I − PPᵀ)A(I − PPᵀ). No point λ has more mass than 1/Σ_j p_j(λ)², the Christoffel function; the largest
    eigenvalue's mass follows χ²_b, which falls below its 1e-9 quantile that rarely. So λ_1 is at most where the
    two meet (in the spirit of Kuczyński and Woźniakowski 1992; Hochstenbach 2013).
    """
    rows = space.mT.contiguous()
    probe = torch.randn(PROBES, matrix.shape[1], generator=generator, dtype=matrix.dtype).to(matrix.device)
    now, before = _outside(probe, rows), torch.zeros_like(probe)
    mass = _norm(now) ** 2
    now = now / math.sqrt(mass)
    diagonal: list[float] = []
    off: list[float] = [0.0]
    blocks: list[Tensor] = []
    for _ in range(DEGREE):
        blocks.append(now)
        image = matrix @ now.mT / norm
        diagonal.append(_norm(image) ** 2)
        after = _outside(image.mT @ matrix / norm, rows) - diagonal[-1] * now - off[-1] * before
        off.append(_norm(after))
        if off[-1] == 0.0:
            break
        before, now = now, after / off[-1]
    jacobi = np.diag(diagonal) + np.diag(off[1:-1], 1) + np.diag(off[1:-1], -1)
    points, weights = np.linalg.eigh(jacobi)
    largest = float(points[-1])
    # The block at the largest Ritz value: close to v vᵀΩ, v the direction that was missed if one was.
    seen = sum(block * float(weight) for block, weight in zip(blocks[1:], weights[1:, -1], strict=True))
    seen = seen + blocks[0] * float(weights[0, -1])
    seen = _outside(seen, rows)
    found = torch.linalg.eigh(_product(seen.mT, seen.mT))[1][:, -KEPT:].mT.to(seen) @ seen
    directions = (found / found.norm(dim=1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)).mT
    if off[-1] == 0.0:
        return largest, directions
    least = 2 * float(gammaincinv(PROBES / 2, FAILURE))

    def exceeds(point: float) -> bool:
        low, value = 0.0, 1 / math.sqrt(mass)
        total = value**2
        for place, centre in enumerate(diagonal):
            low, value = value, ((point - centre) * value - off[place] * low) / off[place + 1]
            total += value**2
            if total * least >= 1.0:
                return True
        return False

    inside, beyond = largest, 2 * largest
    while not exceeds(beyond):
        beyond *= 2
    for _ in range(40):
        middle = (inside + beyond) / 2
        inside, beyond = (inside, middle) if exceeds(middle) else (middle, beyond)
    return beyond, directions


def _norm(block: Tensor) -> float:
    return float(torch.linalg.vector_norm(block.to(torch.float64)))
