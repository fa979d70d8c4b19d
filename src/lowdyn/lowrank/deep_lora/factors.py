"""The factors of one update: how they start, and their product."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lowdyn.linalg import random_orthogonal
from lowdyn.lowrank.deep_lora.config import DeepLoraConfig


class Cores(nn.Module):
    """The r x r factors C_1 … C_k, kept as ``weight`` (k, r, r): h ↦ C_k … C_1 h for every row h of the input."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def product(self) -> Tensor:
        """Return C_k … C_1 (r, r)."""
        product, *rest = self.weight.unbind()
        for core in rest:
            product = core @ product
        return product

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply the rows (…, r) by the product, which is taken first: k r³ and not k samples r² products."""
        return linear(inputs, self.product())


def start_factors(
    config: DeepLoraConfig, rank: int, in_features: int, out_features: int, *, name: str, dtype: torch.dtype
) -> tuple[nn.Linear, nn.Module, nn.Linear]:
    """Return the first factor, the cores between and the last factor of the layer ``name``, as modules.

    The draw depends on the seed and on the name only: not on which layers are adapted, nor on their order.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed} {name}".encode()))
    first = random_orthogonal(rank, in_features, generator=generator)
    last = random_orthogonal(out_features, rank, generator=generator)
    count = config.depth if config.compressed else config.depth - 2
    cores = config.init_scale * random_orthogonal(rank, rank, generator=generator, runs=(count,))
    if not config.compressed:
        first, last = config.init_scale * first, config.init_scale * last
    if config.zero_start:
        (cores[-1] if config.compressed else last).zero_()
    # Row by row in memory: gradients and Adam's moments take on the layout, and optimizers are slower on another.
    first, cores, last = (one.to(dtype).contiguous() for one in (first, cores, last))
    return _as_linear(first), Cores(cores) if count else nn.Identity(), _as_linear(last)


def collapsed(first: nn.Linear, cores: nn.Module, last: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return A (r, in) and B (out, r) with B A = ΔW, in float64, detached."""
    inner = first.weight.detach().to(torch.float64)
    if isinstance(cores, Cores):
        weight = cores.weight.detach().to(torch.float64)
        for core in weight.unbind():
            inner = core @ inner
    return inner, last.weight.detach().to(torch.float64)


def _as_linear(weight: Tensor) -> nn.Linear:
    # On the meta device nothing is drawn: its own start would take from the global generator.
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight)
    return module
