"""Classifiers: multi-layer perceptrons, and hybrids whose last layers are linear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_count, checked_generator, checked_number
from lowdyn.networks.linear import Start, check_sizes, check_weights, draw_weights


class MLP(nn.Module):
    """A perceptron of ``sizes`` (d_0, …, d_L): weights ``hidden1`` … ``output``, ReLUs ``relu1`` …

    The first ``relu_layers`` hidden layers are followed by a ReLU (all of them by default), the others are
    linear: with 4 of 9 it is the lecture's hybrid. ``start`` and ``init_scale`` draw the weights as in
    :class:`~lowdyn.DeepLinearNetwork`; with ``start=None`` torch's own default start is drawn from
    ``generator``. Biases, if any, start at zero. ``output_scale`` multiplies the output (the hybrid of Wang
    et al. 2023 is trained with 100).

    ``lowdyn.gradient_descent`` trains it in closed form when it has no biases and unit output scale; the
    minibatch loop :func:`lowdyn.train` trains any.

    >>> net = MLP((64, 32, 32, 10), generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(5, 64)).shape, net.rectified
    (torch.Size([5, 10]), (True, True, False))
    >>> [name for name, _ in net.named_children()]
    ['hidden1', 'relu1', 'hidden2', 'relu2', 'output']
    """

    def __init__(
        self,
        sizes: Sequence[int],
        init_scale: float = 1.0,
        *,
        start: Start | None = None,
        generator: torch.Generator,
        relu_layers: int | None = None,
        bias: bool = True,
        output_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        checked_number("init_scale", init_scale, at_least=torch.finfo(dtype).tiny)
        draw = default_start if start is None else start
        weights = draw_weights(check_sizes(sizes), start=draw, generator=generator, dtype=dtype)
        self._build([init_scale * weight for weight in weights], relu_layers, bias)
        self.output_scale = checked_number("output_scale", output_scale)

    @classmethod
    def from_weights(cls, weights: Iterable[Any], *, relu_layers: int | None = None) -> MLP:
        """Build the network without biases of copies of ``weights`` [W_1, …, W_L], each (out, in)."""
        checked = check_weights(weights)
        if checked[0].ndim != 2:
            raise ValueError(f"an MLP takes weights (out, in), got {tuple(checked[0].shape)}")
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._build([weight.clone() for weight in checked], relu_layers, bias=False)
        network.output_scale = 1.0
        return network

    def _build(self, weights: list[Tensor], relu_layers: int | None, bias: bool) -> None:
        depth = len(weights)
        relu_layers = depth - 1 if relu_layers is None else checked_count("relu_layers", relu_layers)
        if relu_layers > depth - 1:
            raise ValueError(f"relu_layers is {relu_layers}, but a depth of {depth} has {depth - 1} hidden layers")
        for index, weight in enumerate(weights, start=1):
            self.add_module(f"hidden{index}" if index < depth else "output", linear_layer(weight, bias=bias))
            if index <= relu_layers:
                self.add_module(f"relu{index}", nn.ReLU())
        self.rectified = tuple(index <= relu_layers for index in range(1, depth + 1))

    @property
    def factors(self) -> list[nn.Linear]:
        """The modules that hold the weights, in forward order."""
        return [layer for layer in self.children() if isinstance(layer, nn.Linear)]

    @property
    def weights(self) -> list[Tensor]:
        """The matrices [W_1, …, W_L], detached but sharing memory: writing into one changes the network."""
        return [layer.weight.detach() for layer in self.factors]

    @property
    def depth(self) -> int:
        """Number of weight matrices, L."""
        return len(self.rectified)

    @property
    def features(self) -> list[str]:
        """Names of the modules whose outputs are the features z^1 … z^{L-1}: after the ReLU where there is one."""
        return [f"relu{layer}" if relu else f"hidden{layer}" for layer, relu in enumerate(self.rectified[:-1], start=1)]

    def forward(self, features: Tensor) -> Tensor:
        """Map inputs (samples, …) of d_0 numbers each, flattened, to outputs (samples, d_L)."""
        features = features.flatten(start_dim=1)
        for layer in self.children():
            features = layer(features)
        return features if self.output_scale == 1.0 else self.output_scale * features


def hybrid(
    width: int,
    *,
    relu_layers: int,
    linear_layers: int,
    num_inputs: int,
    num_outputs: int,
    **options: Any,
) -> MLP:
    """Return ``relu_layers`` ReLU layers followed by ``linear_layers`` linear ones (the output is the last).

    The lecture's is 4 + 6. ``options`` are those of :class:`MLP`.

    >>> generator = torch.Generator().manual_seed(0)
    >>> net = hybrid(8, relu_layers=1, linear_layers=2, num_inputs=4, num_outputs=3, generator=generator)
    >>> net.rectified
    (True, False, False)
    """
    depth = checked_count("relu_layers", relu_layers) + checked_count("linear_layers", linear_layers, at_least=1)
    sizes = (num_inputs, *[width] * (depth - 1), num_outputs)
    return MLP(sizes, relu_layers=relu_layers, **options)


def linear_layer(weight: Tensor, *, bias: bool = True) -> nn.Linear:
    """Return the layer that holds ``weight`` (out, in) itself; a bias starts at zero. No generator is drawn from."""
    rows, columns = weight.shape
    # On the meta device nothing is drawn: the global generator stays as it was.
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias:
        layer.bias = nn.Parameter(torch.zeros(rows, dtype=weight.dtype))
    return layer


def default_start(rows: int, columns: int, **options: Any) -> Tensor:
    """Draw torch's default start of ``nn.Linear`` (uniform of bound 1/√columns) from a generator of one's own."""
    dtype = options.get("dtype", torch.float32)
    draw = torch.rand(rows, columns, generator=checked_generator(options["generator"]), dtype=dtype)
    return (2 * draw - 1) / columns**0.5
