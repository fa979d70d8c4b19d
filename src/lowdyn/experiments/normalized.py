"""The perceptrons of the papers' public code: every ReLU layer is normalized over its batch.

Wang et al. 2023 (arXiv 2311.02960) and Zhu et al. 2021 (arXiv 2105.02375) put a batch normalization between the
weight and the ReLU of every nonlinear layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lowdyn.networks import MLP


def normalized_mlp(*arguments: Any, **options: Any) -> MLP:
    """Return the MLP of these arguments with a batch normalization ``norm1`` … before each ReLU.

    >>> import torch
    >>> net = normalized_mlp((64, 32, 32, 10), relu_layers=1, generator=torch.Generator().manual_seed(0))
    >>> [name for name, _ in net.named_children()]
    ['hidden1', 'norm1', 'relu1', 'hidden2', 'output']
    """
    network = MLP(*arguments, **options)
    widths = [layer.out_features for layer in network.factors]
    layers = dict(network.named_children())
    for name in layers:
        delattr(network, name)  # the forward pass goes through the children in the order in which they were added
    for name, layer in layers.items():
        if isinstance(layer, nn.ReLU):
            number = name.removeprefix("relu")
            network.add_module(f"norm{number}", nn.BatchNorm1d(widths[int(number) - 1]))
        network.add_module(name, layer)
    return network
