"""Targets observed in part, as masks and as sparse matrices, and how near products of either form must come."""

import numpy as np
import torch
from scipy import sparse

from lowdyn.problems import Completion
from tests.cases import gaussian, seeded

TOLERANCE = {torch.float64: {"rtol": 1e-11, "atol": 1e-12}, torch.float32: {"rtol": 1e-3, "atol": 1e-4}}


def seen(*shape, fraction=0.5, seed=5):
    """A mask with at least one entry."""
    mask = torch.rand(*shape, generator=seeded(seed)) < fraction
    mask[..., 0, 0] = True
    return mask


def stored(target, mask, kind=sparse.coo_array):
    return kind(sparse.coo_array((target[mask].numpy(), np.nonzero(mask.numpy())), shape=tuple(target.shape)))


def both_forms(m=7, n=9, *, fraction=0.5, reduction="mean", dtype=torch.float64, seed=0):
    target, mask = gaussian(m, n, seed=seed, dtype=dtype), seen(m, n, fraction=fraction, seed=seed + 1)
    return Completion(target, mask, reduction), Completion.from_sparse(stored(target, mask), reduction)
