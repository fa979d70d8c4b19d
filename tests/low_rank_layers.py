"""Layers of known rank, a network of several, and the product of a pair."""

import torch
from torch import nn

from lowdyn.networks import MLP
from tests.cases import built, gaussian, seeded


def of_rank(rank, rows, columns, seed=0):
    return gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1)


def linear(weight, bias=True):
    layer = built(lambda: nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=weight.dtype))
    layer.weight = nn.Parameter(weight.clone())
    return layer


def mlp(*sizes, dtype=torch.float64):
    return MLP(sizes or (12, 30, 20, 5), generator=seeded(), dtype=dtype)


def product(pair):
    return (pair[1].weight.flatten(1) @ pair[0].weight.flatten(1)).detach()
