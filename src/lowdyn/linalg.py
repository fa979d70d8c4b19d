"""Orthonormal bases, principal angles, ranks and whitening; every function takes leading batch dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.arguments import checked_generator, checked_matrix, checked_number

# Entries of a sparse matrix that are written out at a time: 8 MB, little memory, and enough for LAPACK to run fast.
_BLOCK = 1 << 20


def random_orthogonal(
    rows: int,
    columns: int,
    *,
    generator: torch.Generator,
    runs: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw a Haar-distributed matrix (*runs, rows, columns) with orthonormal rows or columns.

    The QR factor of a Gaussian matrix with the signs of R's diagonal moved into Q, which makes the law
    exactly invariant under rotations (Mezzadri 2007, arXiv math-ph/0609050).

    >>> q = random_orthogonal(3, 5, generator=torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(q @ q.T, torch.eye(3, dtype=q.dtype)))
    True
    """
    checked_generator(generator)
    tall, thin = max(rows, columns), min(rows, columns)
    gaussian = torch.randn(*runs, tall, thin, generator=generator, dtype=torch.float64, device=device)
    q, r = torch.linalg.qr(gaussian)
    signs = torch.diagonal(r, dim1=-2, dim2=-1).sign()
    q = (q * signs.unsqueeze(-2)).to(dtype)
    return q if rows >= columns else q.mT.contiguous()


def numerical_rank(values: Tensor, *, rows: int, columns: int, tolerance: float | None = None) -> int:
    """Count the singular ``values`` (descending) above ``tolerance`` times the largest.

    The default tolerance is max(rows, columns) · eps, that of ``numpy.linalg.matrix_rank``.

    >>> numerical_rank(torch.tensor([3.0, 1.0, 1e-9]), rows=3, columns=3)
    2
    """
    if tolerance is None:
        tolerance = max(rows, columns) * torch.finfo(values.dtype).eps
    largest = float(values[0])
    return 0 if largest == 0.0 else int((values > tolerance * largest).sum())


def rank_of_energy(values: Tensor, share: float = 0.99) -> int:
    """Return the smallest r whose r largest singular ``values`` (n,), descending, hold ``share`` of Σσ².

    It is the rank of the best approximation with ‖A − A_r‖_F² ≤ (1 − share)·‖A‖_F² (Eckart and Young); 0 where all
    are zero. ValueError for a share outside [0, 1].

    >>> rank_of_energy(torch.tensor([3.0, 1.0, 0.1]), 0.99)
    2
    """
    if checked_number("share", share, at_least=0.0) > 1.0:
        raise ValueError(f"share must be at most 1, got {share:g}")
    largest = float(values.max()) if values.numel() else 0.0
    if largest == 0.0:
        return 0
    # Of what is left over, not of what is held: 1 − share is then exact for shares near 1.
    tails = (values.to(torch.float64) / largest).flip(0).square().cumsum(0).flip(0)
    return int((tails > (1 - share) * tails[0]).sum())


def orthonormal_basis(*blocks: Tensor, tolerance: float | None = None) -> Tensor:
    """Return an orthonormal basis (rows, k) of the span of all columns of ``blocks``, k its numerical rank.

    Columns are scaled to unit norm first, so that ``tolerance`` (default max(rows, columns) · eps) speaks of
    directions and not of lengths.

    >>> e = torch.eye(4, dtype=torch.float64)
    >>> orthonormal_basis(e[:, :2], 1e-6 * e[:, 1:3]).shape
    torch.Size([4, 3])
    """
    columns = torch.cat(blocks, dim=-1)
    norms = columns.norm(dim=-2, keepdim=True)
    columns = columns / torch.where(norms > 0, norms, torch.ones_like(norms))
    u, values, _ = torch.linalg.svd(columns, full_matrices=False)
    rank = numerical_rank(values, rows=columns.shape[-2], columns=columns.shape[-1], tolerance=tolerance)
    return u[:, :rank]


def orthonormal_complement(basis: Tensor) -> Tensor:
    """Return an orthonormal basis (d, d − k) of the complement of an orthonormal ``basis`` (d, k).

    >>> orthonormal_complement(torch.eye(3)[:, :1]).shape
    torch.Size([3, 2])
    """
    complete, _ = torch.linalg.qr(basis, mode="complete")
    return complete[:, basis.shape[1] :]


def low_rank_factors(matrix: Tensor, *, tolerance: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, r), σ (r,), V (n, r) with ‖A − U diag(σ) Vᵀ‖_F ≤ tolerance · ‖A‖_F, measured, not assumed.

    A random projection of growing width finds the range and the residual certifies it (Halko, Martinsson and
    Tropp 2011, arXiv 0909.4061), at O(m n r) where an SVD costs O(m n min(m, n)); a matrix of high rank ends in
    the SVD. Singular values below the tolerance, by default max(m, n) · eps, are left out. The generator of the
    projection is this function's own, so that the same matrix gives the same factors.

    >>> u, values, v = low_rank_factors(torch.outer(torch.arange(1.0, 4.0), torch.ones(5)))
    >>> u.shape, v.shape, round(float(values[0]), 4)
    (torch.Size([3, 1]), torch.Size([5, 1]), 8.3666)
    """
    rows, columns = matrix.shape
    smaller = min(rows, columns)
    if tolerance is None:
        tolerance = max(rows, columns) * torch.finfo(matrix.dtype).eps
    generator = torch.Generator().manual_seed(0)
    norm, width = matrix.norm(), 16
    while 4 * width < smaller:
        probe = torch.randn(columns, width, generator=generator, dtype=matrix.dtype).to(matrix.device)
        basis, _ = torch.linalg.qr(matrix @ probe)
        core = basis.mT @ matrix
        if float((matrix - basis @ core).norm()) <= tolerance * float(norm):
            left, values, right_t = torch.linalg.svd(core, full_matrices=False)
            left = basis @ left
            break
        width *= 4
    else:
        left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > tolerance * values[0]
    return left[:, kept], values[kept], right_t[kept].mT


def spectral_norm(matrices: Tensor) -> float:
    """Return the largest singular value of a matrix, the largest over all of them for (…, m, n).

    >>> spectral_norm(torch.diag(torch.tensor([3.0, 4.0])))
    4.0
    """
    return float(torch.linalg.matrix_norm(matrices.to(torch.float64), ord=2).max())


def leading_singular_vectors(matrix: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, count), σ (count,) descending and V (n, count) of the ``count`` largest singular values, float64.

    ``matrix`` is a tensor, a scipy sparse matrix or a ``LinearOperator``. Lanczos (ARPACK, to machine precision
    for values above 1e-8 of the largest) takes products only, from a fixed start, so that the same matrix gives the
    same vectors. A small or thin matrix, or a large share of the spectrum, goes through the SVD: a large sparse one a
    block of rows at a time, so that nothing of m x n is formed, only what is in size like U and V, and some blocks of
    8 MB. ValueError when count exceeds min(m, n).

    >>> u, values, v = leading_singular_vectors(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    >>> values.tolist(), v.shape
    ([3.0, 2.0], torch.Size([3, 2]))
    """
    rows, columns = matrix.shape
    smaller = min(rows, columns)
    if not 1 <= count <= smaller:
        raise ValueError(f"a {rows} x {columns} matrix has 1 … {smaller} leading singular vectors, not {count}")
    dense, small = isinstance(matrix, Tensor), rows * columns <= _BLOCK
    if smaller <= 200 or 4 * count > smaller:
        if hasattr(matrix, "tocsr") and not small:
            return _by_rows(matrix, count)
        if dense or small or 4 * count > smaller:  # of a large operator U alone then has a quarter of its size
            formed = matrix.to(torch.float64) if dense else _formed(matrix)
            left, values, right_t = torch.linalg.svd(formed, full_matrices=False)
            return left[:, :count], values[:count], right_t[:count].mT
    from scipy.sparse.linalg import svds

    operand = matrix.detach().cpu().to(torch.float64).numpy() if dense else matrix
    begin = np.random.default_rng(0).standard_normal(smaller)
    if not np.any(operand @ begin if columns <= rows else operand.T @ begin):  # ARPACK cannot start at zero
        u, s, vt = np.eye(rows, count), np.zeros(count), np.eye(count, columns)
    else:
        u, s, vt = svds(operand, k=count, v0=begin, solver="arpack")
    order = np.argsort(-s)
    parts = (u[:, order], s[order], vt[order].T)
    device = matrix.device if dense else None
    left, values, right = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts)
    return left, values, right


def _formed(matrix: Any) -> Tensor:
    """Return all entries of a sparse matrix or an operator, float64, by products with the shorter identity."""
    rows, columns = matrix.shape
    full = matrix @ np.eye(columns) if columns <= rows else (matrix.T @ np.eye(rows)).T
    return torch.from_numpy(np.asarray(full)).to(torch.float64)


def _by_rows(matrix: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``leading_singular_vectors`` does of a sparse matrix, to eps·σ_1 as the SVD would.

    The triangle R of A = Q R, gathered a block of rows at a time, has A's singular values and right vectors; a Gram
    matrix would lose those below 1e-8 of the largest.
    """
    turned = matrix.shape[0] < matrix.shape[1]
    tall = (matrix.T if turned else matrix).tocsr()
    rows, columns = tall.shape
    step = max(columns, _BLOCK // columns)
    triangle: Any = np.zeros((0, columns))
    for begin in range(0, rows, step):
        stacked = np.concatenate([triangle, tall[begin : begin + step].toarray()], dtype=np.float64)
        triangle = np.linalg.qr(stacked, mode="r")
    _, values, right_t = np.linalg.svd(triangle)
    right = np.ascontiguousarray(right_t[:count].T)
    # A v_i / σ_i would not be orthonormal where σ_i is small; in descending order QR is, and as near to A.
    left, inner = np.linalg.qr(tall @ right)
    left *= np.where(np.diagonal(inner) < 0, -1.0, 1.0)
    left, right = (right, left) if turned else (left, right)
    return torch.from_numpy(left), torch.from_numpy(values[:count].copy()), torch.from_numpy(right)


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles in radians, largest first, between the spans of two orthonormal bases.

    ``first`` (…, d, k) and ``second`` (…, d, m) have orthonormal columns; min(k, m) angles come back. Angles
    below π/4 are taken from the sine, those above from the cosine (Knyazev and Argentati 2002, Algorithm
    3.1): the arccosine alone has a floor of 3e-8 in float64 and 7e-4 in float32. Computed in float64.

    >>> e = torch.eye(3, dtype=torch.float64)
    >>> tilted = torch.stack([e[0], e[1] + 1e-12 * e[2]], dim=1)
    >>> float(principal_angles(tilted, e[:, :2])[0])
    1e-12
    """
    first, second = first.to(torch.float64), second.to(torch.float64)
    if first.shape[-2] != second.shape[-2]:
        raise ValueError(
            f"the two bases live in spaces of dimension {first.shape[-2]} and {second.shape[-2]}; "
            "principal angles need the same one"
        )
    if first.shape[-1] > second.shape[-1]:
        first, second = second, first
    overlap = second.mT @ first
    # Ascending cosines and descending sines both list the largest angle first.
    cosines = torch.linalg.svdvals(overlap).flip(-1).clamp(max=1.0)
    sines = torch.linalg.svdvals(first - second @ overlap).clamp(max=1.0)
    return torch.where(cosines**2 > 0.5, torch.asin(sines), torch.acos(cosines))


def whiten(inputs: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Precondition full-rank ``inputs`` X (d, N), N ≥ d, so that X̂X̂ᵀ = scale · I: the theorem's setting.

    Returns (X̂, T) with X̂ = T X and T = √scale (XXᵀ)^(-1/2) symmetric (d, d), by the SVD of X, which does not
    square its condition number as the Gram matrix would. A network M trained on X̂ acts on raw inputs as M T.
    ValueError when X has not full row rank.

    >>> x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> white, transform = whiten(x)
    >>> bool(torch.allclose(white @ white.T, torch.eye(3, dtype=x.dtype)))
    True
    """
    inputs = checked_matrix("inputs", inputs)
    checked_number("scale", scale, at_least=torch.finfo(inputs.dtype).tiny)
    d, samples = inputs.shape[-2:]
    u, values, vt = torch.linalg.svd(inputs, full_matrices=False)
    smallest = torch.where(values[..., 0] > 0, values[..., -1] / values[..., 0], 0.0)
    if samples < d or bool((smallest <= max(d, samples) * torch.finfo(inputs.dtype).eps).any()):
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} have not full row rank (smallest over largest singular "
            f"value {float(smallest.min()):.1e}), so no preconditioner whitens them; drop dependent features "
            "or project on the leading singular vectors first"
        )
    root = math.sqrt(scale)
    return root * (u @ vt), root * (u / values.unsqueeze(-2)) @ u.mT
