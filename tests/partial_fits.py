"""Matrices of low rank seen in part, dense with NaN or sparse, and fits to them."""

import numpy as np
from scipy import sparse

from lowdyn import DeepMatrixCompletion


def low_rank(rows, columns, rank, *, seed=0, noise=0.0, share=0.5):
    """A matrix and what is seen of it, dense with NaN."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, columns))
    seen = generator.random(truth.shape) < share
    return truth, np.where(seen, truth + noise * generator.normal(size=truth.shape), np.nan)


def as_sparse(dense, kind=sparse.coo_array):
    rows, columns = np.nonzero(~np.isnan(dense))
    return kind((dense[rows, columns], (rows, columns)), shape=dense.shape)


def relative_error(model, truth, seen):
    unseen = np.isnan(seen)
    return np.linalg.norm((model.complete(clip=False) - truth)[unseen]) / np.linalg.norm(truth[unseen])


def fitted(seen, **parameters):
    return DeepMatrixCompletion(**{"random_state": 0, **parameters}).fit(seen)
