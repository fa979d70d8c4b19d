"""One layer as a pair W = BA of two, and back: linear, and convolution as a k x k one into the rank and a 1 x 1 one."""

from __future__ import annotations

import math
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_count, checked_generator

Layer = nn.Linear | nn.Conv2d


def matrix_of(layer: Layer) -> Tensor:
    """Return a layer's weight as the matrix (out, in) that is factorized, detached.

    Of a convolution that is (out, in · kernel height · kernel width): what it applies to every patch.

    >>> matrix_of(nn.Conv2d(3, 8, 5)).shape
    torch.Size([8, 75])
    """
    return layer.weight.detach().flatten(start_dim=1)


def worthwhile_rank(rows: int, columns: int) -> int:
    """Return the largest rank r at which a pair needs fewer multiply-adds than W: r < mn/(m + n), 0 if none.

    >>> worthwhile_rank(2000, 2000), worthwhile_rank(10, 2000), worthwhile_rank(1, 5)
    (999, 9, 0)
    """
    return (rows * columns - 1) // (rows + columns)


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return B (m, r) and A (r, n), in float64, whose product is the best rank-r approximation, and what it loses.

    With W = UΣVᵀ, B = U_r Σ_r^½ and A = Σ_r^½ V_rᵀ: the balanced split, BᵀB = AAᵀ, which descent on the pair keeps
    where it starts from it. What is lost is the share of the energy Σ_{i > r} σ_i²/Σ σ_i² (Eckart and Young 1936).

    >>> b, a, lost = truncated(torch.diag(torch.tensor([4.0, 2.0])), 1)
    >>> (b @ a).tolist(), lost
    ([[4.0, 0.0], [0.0, 0.0]], 0.2)
    """
    left, values, right_t = torch.linalg.svd(matrix.detach().to(torch.float64), full_matrices=False)
    root = values[:rank].sqrt()
    total = float(values.square().sum())
    lost = float(values[rank:].square().sum()) / total if total > 0 else 0.0
    return left[:, :rank] * root, root.unsqueeze(-1) * right_t[:rank], lost


def projected(matrix: Tensor, active: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return B and A, balanced, in float64, with BA = W V Vᵀ, V = ``active`` (n, r) orthonormal, and what is lost.

    W acts as before on the inputs in the span of V, and on no others: where V are the directions that learning used,
    nearly all of what the layer does stays, though most of the random start's energy goes.

    >>> b, a, lost = projected(torch.diag(torch.tensor([3.0, 4.0])), torch.tensor([[0.0], [1.0]]))
    >>> (b @ a).tolist(), lost
    ([[0.0, 0.0], [0.0, 4.0]], 0.36)
    """
    matrix, active = matrix.detach().to(torch.float64), active.to(matrix.device, torch.float64)
    seen = matrix @ active
    b, inner, _ = truncated(seen, active.shape[1])
    a = inner @ active.mT
    total = float(matrix.square().sum())
    lost = float((matrix - seen @ active.mT).square().sum()) / total if total > 0 else 0.0
    return b, a, lost


def drawn(rows: int, columns: int, rank: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw B (m, r) and A (r, n), Gaussian, in float64, of equal expected norms.

    Every entry of BA has the variance 1/(3n) of torch's own start of a dense layer with n inputs, so that the
    features keep their size.
    """
    checked_generator(generator)
    b, a = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
        for shape in ((rows, rank), (rank, columns))
    )
    variance = 1 / math.sqrt(3 * rows * rank)  # of B; A has rows/columns of it
    return math.sqrt(variance) * b, math.sqrt(variance * rows / columns) * a


def low_rank_pair(
    layer: Layer, rank: int, *, active: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[nn.Sequential, float]:
    """Return two plain layers whose weights are W ≈ BA, A first, and the share of W's energy that is lost.

    From the truncated SVD of the present weight (:func:`truncated`), or its part on ``active`` (in, rank)
    (:func:`projected`), or with ``generator`` drawn afresh (:func:`drawn`), which loses all of it. A convolution
    becomes one of the same kernel, stride, padding and dilation into ``rank`` channels, then a 1 x 1 one. The bias, the
    very parameter, goes with the second. Device, dtype, mode and whether the weight learns stay. ValueError for a rank
    above min(m, n).

    >>> layer = nn.Linear(20, 30)
    >>> pair, lost = low_rank_pair(layer, 4)
    >>> pair, pair[1].bias is layer.bias
    (Sequential(
      (0): Linear(in_features=20, out_features=4, bias=False)
      (1): Linear(in_features=4, out_features=30, bias=True)
    ), True)
    """
    matrix = matrix_of(layer)
    rows, columns = matrix.shape
    if checked_count("rank", rank, at_least=1) > min(rows, columns):
        raise ValueError(f"rank {rank} is more than a weight of {rows} x {columns} has, {min(rows, columns)}")
    if generator is not None:
        b, a = drawn(rows, columns, rank, generator=generator)
        lost = 1.0
    elif active is not None:
        b, a, lost = projected(matrix, active)
    else:
        b, a, lost = truncated(matrix, rank)
    first: Layer
    second: Layer
    # On the meta device nothing is drawn: the global generator stays as it was.
    if isinstance(layer, nn.Linear):
        first = nn.Linear(columns, rank, bias=False, device="meta")
        second = nn.Linear(rank, rows, bias=False, device="meta")
    else:
        first = _convolution(layer, layer.in_channels, rank)
        second = nn.Conv2d(rank, rows, 1, bias=False, device="meta")
    for part, factor in ((first, a), (second, b)):
        values = factor.reshape(part.weight.shape).to(layer.weight)
        part.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)
    second.bias = layer.bias
    return nn.Sequential(first, second).train(layer.training), lost


def is_pair(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Return whether a module is what :func:`low_rank_pair` makes: W = BA through fewer channels than it has.

    >>> is_pair(nn.Sequential(nn.Linear(9, 2, bias=False), nn.Linear(2, 9))), is_pair(nn.Sequential(nn.Linear(9, 9)))
    (True, False)
    """
    if type(module) is not nn.Sequential or len(module) != 2:
        return False
    first, second = module
    if type(first) is nn.Linear and type(second) is nn.Linear:
        fits = first.out_features == second.in_features
    elif type(first) is nn.Conv2d and type(second) is nn.Conv2d:
        plain = (second.kernel_size, second.stride, second.padding) == ((1, 1), (1, 1), (0, 0))
        fits = first.out_channels == second.in_channels and plain and first.groups == second.groups == 1
    else:
        return False
    a, b = matrix_of(first), matrix_of(second)
    return fits and first.bias is None and a.shape[0] < min(b.shape[0], a.shape[1])


def merged(pair: nn.Sequential) -> Layer:
    """Return the one layer that a pair amounts to: W = BA, summed in float64, rounded once.

    >>> layer = nn.Conv2d(8, 8, 3, padding=1)
    >>> with torch.no_grad():
    ...     _ = layer.weight[1:].zero_()
    >>> pair, _ = low_rank_pair(layer, 1)
    >>> bool(torch.allclose(merged(pair).weight, layer.weight, atol=1e-7))
    True
    """
    first, second = pair
    assert isinstance(first, Layer)
    assert isinstance(second, Layer)
    product = matrix_of(second).to(torch.float64) @ matrix_of(first).to(torch.float64)
    layer: Layer
    if isinstance(first, nn.Linear):
        layer = nn.Linear(product.shape[1], product.shape[0], bias=False, device="meta")
    else:
        layer = _convolution(first, first.in_channels, product.shape[0])
    values = product.reshape(layer.weight.shape).to(first.weight)
    layer.weight = nn.Parameter(values, requires_grad=first.weight.requires_grad or second.weight.requires_grad)
    layer.bias = second.bias
    return layer.train(pair.training)


def _convolution(like: nn.Conv2d, channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a convolution that moves over its input as ``like`` does, without bias or values."""
    return nn.Conv2d(
        channels_in,
        channels_out,
        cast(tuple[int, int], like.kernel_size),
        cast(tuple[int, int], like.stride),
        cast(tuple[int, int], like.padding),  # or a word, "same"
        cast(tuple[int, int], like.dilation),
        bias=False,
        padding_mode=like.padding_mode,
        device="meta",
    )
