"""A small vision transformer, for images of a few pixels and machines without an accelerator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from lowdyn.arguments import checked_count, checked_generator, checked_number
from lowdyn.networks.classifiers import default_start, linear_layer
from lowdyn.networks.linear import Start


class SmallViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): patches, ``depth`` blocks, a class token.

    ``image`` (height, width, channels) is cut into square patches of ``patch`` pixels a side, which must fit. Every
    block is pre-norm: attention of ``heads`` heads, then a perceptron of ``expansion`` · ``width`` hidden units. The
    weights are plain ``nn.Linear`` modules: ``patches``, ``block1.query``, ``.key``, ``.value``, ``.mixed``,
    ``.expand``, ``.contract``, …, ``output``; the last one before the classifier is ``block<depth>.contract``.

    ``start`` and ``init_scale`` draw them as in :class:`~lowdyn.networks.MLP`, torch's own default start without;
    class token and positions are normal of deviation 0.02, biases zero. Everything comes from ``generator``.

    The input is images (samples, height, width, channels), or the flat rows of
    :meth:`lowdyn.data.ImageSet.features`; the output (samples, num_classes).

    >>> net = SmallViT((8, 8, 1), 10, width=16, depth=2, generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        generator: torch.Generator,
        heads: int = 4,
        patch: int = 4,
        expansion: int = 2,
        start: Start | None = None,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        checked_generator(generator)
        checked_number("init_scale", init_scale, at_least=torch.finfo(torch.float32).tiny)
        for name, count in {"width": width, "depth": depth, "heads": heads, "patch": patch}.items():
            checked_count(name, count, at_least=1)
        height, across, channels = image
        if height % patch or across % patch:
            raise ValueError(f"images of {height} × {across} cannot be cut into patches of {patch} × {patch}")
        if width % heads:
            raise ValueError(f"width {width} cannot be shared by {heads} heads; it must be a multiple of them")
        draw = default_start if start is None else start
        self.image, self.patch = (height, across, channels), patch

        def linear(rows: int, columns: int) -> nn.Linear:
            return linear_layer(init_scale * draw(rows, columns, generator=generator, dtype=torch.float32))

        def small(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(*shape, generator=generator))

        self.patches = linear(width, patch * patch * channels)
        self.class_token = small(1, 1, width)
        self.positions = small(1, 1 + (height // patch) * (across // patch), width)
        self.blocks = [Block(width, heads, expansion, linear) for _ in range(depth)]
        for index, block in enumerate(self.blocks, start=1):
            self.add_module(f"block{index}", block)
        self.norm = nn.LayerNorm(width)
        self.output = linear(num_classes, width)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to outputs (samples, num_classes)."""
        height, across, channels = self.image
        p = self.patch
        cut = images.reshape(len(images), height // p, p, across // p, p, channels).transpose(2, 3)
        tokens = self.patches(cut.flatten(3).flatten(1, 2))
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.output(self.norm(tokens[:, 0]))


class Block(nn.Module):
    """One block of the transformer: tokens (samples, tokens, width) in and out."""

    def __init__(self, width: int, heads: int, expansion: int, linear: Callable[[int, int], nn.Linear]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mixed = (linear(width, width) for _ in range(4))
        self.expand, self.contract = linear(expansion * width, width), linear(width, expansion * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Let tokens attend to one another, then each pass the perceptron; both add to what was there."""
        normed = self.norm1(tokens)
        query, key, value = (self._by_head(layer(normed)) for layer in (self.query, self.key, self.value))
        seen = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.mixed(seen)
        return tokens + self.contract(gelu(self.expand(self.norm2(tokens))))

    def _by_head(self, tokens: Tensor) -> Tensor:
        samples, count, width = tokens.shape
        return tokens.reshape(samples, count, self.heads, width // self.heads).transpose(1, 2)
