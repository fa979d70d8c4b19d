"""Matrices of known singular values, and the values of a record of them."""

import torch

from lowdyn.linalg import random_orthogonal
from tests.cases import seeded


def values(record):
    return {name: array for name, (_, array) in record.items()}


def with_values(*singular_values, rows=None, seed=0):
    """Return a matrix of known singular values and random singular vectors."""
    d = len(singular_values)
    left = random_orthogonal(rows or d, d, generator=seeded(seed))
    right = random_orthogonal(d, d, generator=seeded(seed + 1))
    return left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right.T
