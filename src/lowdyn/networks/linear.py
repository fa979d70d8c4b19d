"""Deep linear networks and the matrices they start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_count, checked_generator, checked_matrix, checked_number
from lowdyn.linalg import random_orthogonal

Start = Callable[..., Tensor]
"""``start(rows, columns, generator=…, runs=…, dtype=…, device=…)`` -> weights of unit scale, (*runs, rows, columns)."""


def orthogonal(rows: int, columns: int, **options: Any) -> Tensor:
    """Haar-distributed weights with orthonormal rows or columns: every singular value is 1.

    >>> torch.linalg.svdvals(orthogonal(2, 5, generator=torch.Generator().manual_seed(0))).round(decimals=12).tolist()
    [1.0, 1.0]
    """
    return random_orthogonal(rows, columns, **options)


def normal(rows: int, columns: int, **options: Any) -> Tensor:
    """Gaussian weights of variance 1/max(rows, columns): the expected squared norm of :func:`orthogonal`.

    >>> round(float(normal(200, 800, generator=torch.Generator().manual_seed(0)).square().sum()), -1)
    200.0
    """
    return _draw(torch.randn, rows, columns, **options) / math.sqrt(max(rows, columns))


def uniform(rows: int, columns: int, **options: Any) -> Tensor:
    """Uniform weights of variance 1/max(rows, columns): the expected squared norm of :func:`orthogonal`.

    >>> weights = uniform(200, 300, generator=torch.Generator().manual_seed(0))
    >>> round(float(weights.square().sum()), -1), round(float(weights.abs().max()), 4)
    (200.0, 0.1)
    """
    return (_draw(torch.rand, rows, columns, **options) * 2 - 1) * math.sqrt(3 / max(rows, columns))


def _draw(
    sampler: Callable[..., Tensor],
    rows: int,
    columns: int,
    *,
    generator: torch.Generator,
    runs: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    return sampler(*runs, rows, columns, generator=generator, dtype=dtype, device=device)


class Factor(nn.Module):
    """One weight matrix (…, out, in) that acts on features (…, samples, in) from the right, W zᵀ in rows."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (…, samples, out)."""
        return features @ self.weight.mT

    def extra_repr(self) -> str:
        """Show in and out sizes."""
        return " x ".join(map(str, self.weight.shape))


class DeepLinearNetwork(nn.Module):
    """A product of weight matrices, W_L … W_1, of any sizes that chain; its modules are ``W1`` … ``WL``.

    ``sizes`` is (d_0, …, d_L), d_0 the input; weight l has shape (d_l, d_{l-1}) and is drawn as
    ``init_scale`` times ``start`` (:func:`orthogonal`, :func:`normal`, :func:`uniform` or any callable like
    them). With ``runs=n`` every weight has a leading dimension n: n independent networks that
    :func:`lowdyn.gradient_descent` trains in one go. float64 unless ``dtype`` says otherwise, because the
    laws this library checks hold to the last digits.

    TypeError or ValueError: no layer, a size below 1, a scale that is not positive, no generator.

    >>> net = DeepLinearNetwork((4, 4, 2), init_scale=0.5, generator=torch.Generator().manual_seed(0))
    >>> [tuple(w.shape) for w in net.weights], net.depth
    ([(4, 4), (2, 4)], 2)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        init_scale: float = 1.0,
        *,
        start: Start = orthogonal,
        generator: torch.Generator,
        runs: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = check_sizes(sizes)
        checked_number("init_scale", init_scale, at_least=torch.finfo(dtype).tiny)
        batch = () if runs is None else (checked_count("runs", runs, at_least=1),)
        options: dict[str, Any] = {
            "start": start,
            "generator": generator,
            "runs": batch,
            "dtype": dtype,
            "device": device,
        }
        self._hold(init_scale * weight for weight in draw_weights(sizes, **options))

    @classmethod
    def from_weights(cls, weights: Iterable[Any]) -> DeepLinearNetwork:
        """Build the network of copies of ``weights`` [W_1, …, W_L], W_1 acting on the input.

        Each is (out, in), or (runs, out, in) with the same number of runs in all; arrays or tensors of one
        dtype. ValueError when there is none, when the sizes do not chain, or for NaN.

        >>> DeepLinearNetwork.from_weights([[[1.0, 2.0]], [[3.0]]]).end_to_end()
        tensor([[3., 6.]], dtype=torch.float64)
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._hold(weight.clone() for weight in check_weights(weights))
        return network

    def _hold(self, weights: Iterable[Tensor]) -> None:
        for layer, weight in enumerate(weights, start=1):
            # Row by row in memory: a QR factor comes column by column, and products into it would be copied.
            self.add_module(f"W{layer}", Factor(weight.contiguous()))

    @property
    def weights(self) -> list[Tensor]:
        """The matrices [W_1, …, W_L], detached but sharing memory: writing into one changes the network."""
        return [factor.weight.detach() for factor in self.factors]

    @property
    def factors(self) -> list[Factor]:
        """The modules that hold the weights, in forward order."""
        return [factor for factor in self.children() if isinstance(factor, Factor)]

    @property
    def rectified(self) -> tuple[bool, ...]:
        """Whether a ReLU follows weight l: never, here."""
        return (False,) * self.depth

    @property
    def depth(self) -> int:
        """Number of weight matrices, L."""
        return len(self.factors)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths (d_0, …, d_L), d_0 the input."""
        return (self.weights[0].shape[-1], *(w.shape[-2] for w in self.weights))

    @property
    def runs(self) -> int | None:
        """Number of networks trained side by side; None when there is no such dimension."""
        return self.weights[0].shape[0] if self.weights[0].ndim == 3 else None

    def run(self, index: int) -> DeepLinearNetwork:
        """Return a copy of one of the networks trained side by side."""
        if self.runs is None:
            raise ValueError("this network has no dimension of runs; it is one network already")
        return DeepLinearNetwork.from_weights(weight[index] for weight in self.weights)

    def end_to_end(self) -> Tensor:
        """Return the product W_L … W_1, (…, d_L, d_0), detached. For autograd apply the network to an identity."""
        return product_of(self.weights)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (…, samples, d_0) to (…, samples, d_L): rows are samples, as everywhere in torch."""
        for factor in self.factors:
            features = factor(features)
        return features


def product_of(weights: Sequence[Tensor]) -> Tensor:
    """Return the new matrix W_L … W_1 (…, d_L, d_0) of ``weights`` [W_1, …, W_L], multiplied from the narrower end.

    >>> product_of([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])])
    tensor([[3., 6.],
            [4., 8.]])
    """
    if len(weights) == 1:
        return weights[0].clone()
    if weights[-1].shape[-2] < weights[0].shape[-1]:
        return reduce(lambda product, weight: product @ weight, reversed(weights))
    return reduce(lambda product, weight: weight @ product, weights)


def narrowest_split(weights: Sequence[Tensor]) -> int:
    """Return s that splits [W_1, …, W_L] into W_1 … W_s and W_{s+1} … W_L at the narrowest inner dimension.

    Among equals the outer factor of the longer side stands alone, so that the products of that side need no step.

    >>> narrowest_split([torch.ones(2, 9), torch.ones(2, 2), torch.ones(5, 2)])
    1
    """
    inner = [weight.shape[-2] for weight in weights[:-1]]
    narrow = [place for place, size in enumerate(inner, start=1) if size == min(inner)]
    return narrow[0] if weights[0].shape[-1] >= weights[-1].shape[-2] else narrow[-1]


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return ``sizes`` as ints; ValueError for fewer than two or one below 1 (a network of depth zero)."""
    sizes = tuple(checked_count("every size", size, at_least=1) for size in sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes must name at least input and output (depth 1), got {sizes}")
    return sizes


def draw_weights(sizes: Sequence[int], *, start: Start, generator: torch.Generator, **options: Any) -> list[Tensor]:
    """Draw one weight of unit scale per pair of neighbouring ``sizes``, first layer first."""
    checked_generator(generator)
    weights = []
    for columns, rows in pairwise(sizes):
        weight = start(rows, columns, generator=generator, **options)
        if tuple(weight.shape[-2:]) != (rows, columns):
            raise ValueError(
                f"start returned shape {tuple(weight.shape)} where a weight ({rows}, {columns}) was asked for"
            )
        weights.append(weight)
    return weights


def check_weights(weights: Iterable[Any]) -> list[Tensor]:
    """Return ``weights`` as tensors that chain, share dtype and runs; ValueError or TypeError otherwise."""
    checked = [checked_matrix(f"weight {layer}", weight) for layer, weight in enumerate(weights, start=1)]
    if not checked:
        raise ValueError("a network needs at least one weight, got none")
    for below, (first, second) in enumerate(pairwise(checked), start=1):
        if second.shape[-1] != first.shape[-2]:
            raise ValueError(
                f"weight {below + 1} of shape {tuple(second.shape)} does not chain with weight {below} of "
                f"shape {tuple(first.shape)}: its columns must be {first.shape[-2]}"
            )
    if len({weight.dtype for weight in checked}) > 1:
        raise TypeError(f"weights must share one dtype, got {[str(w.dtype) for w in checked]}")
    if len({weight.shape[:-2] for weight in checked}) > 1 or checked[0].ndim > 3:
        raise ValueError(f"weights must be (out, in), or all (runs, out, in), got {[tuple(w.shape) for w in checked]}")
    return checked
