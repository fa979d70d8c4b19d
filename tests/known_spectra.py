"""Matrices of known singular values, and the values of a record of them."""

import torch

from lowdyn.linalg import random_orthogonal
from tests.cases import seeded


def values(record):
    return {name: array for name, (_, array) in record.items()}


def stand_apart(model):
    """Let the two leading and the two trailing values of each weight stand apart: their vectors are then defined."""
    for weight in model.weights:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        values[2:-2] = torch.linspace(1.0, 0.6, max(0, len(values) - 4))
        values[:2], values[-2:] = torch.tensor([3.0, 2.0]), torch.tensor([0.3, 0.1])
        weight.copy_(left * values @ right)
    return model


def with_values(*singular_values, rows=None, seed=0):
    """Return a matrix of known singular values and random singular vectors."""
    d = len(singular_values)
    left = random_orthogonal(rows or d, d, generator=seeded(seed))
    right = random_orthogonal(d, d, generator=seeded(seed + 1))
    return left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right.T
