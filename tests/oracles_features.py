"""Slow twins of what is measured on features: covariance matrices, pseudo-inverses, every sample held."""

import numpy as np
from sklearn.linear_model import Ridge


def collapse(features, labels, *, balanced=True, weight=None, answers=None):
    """NC1 to NC4 as they are written, with width × width matrices; NaN for what there is nothing to compare with."""
    z, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    classes = int(y.max()) + 1
    means = np.stack([z[y == k].mean(axis=0) for k in range(classes)])
    share = np.array([1 / classes if balanced else (y == k).mean() for k in range(classes)])
    centred = means - share @ means
    apart = [z[y == k] - means[k] for k in range(classes)]
    within = sum(w * a.T @ a / len(a) for w, a in zip(share, apart, strict=True))
    between = sum(w * np.outer(m, m) for w, m in zip(share, centred, strict=True))
    # The null space of Σ_B is left out by its rank, K − 1 at most, which rounding would fill.
    tolerance = 1e-11 if min(z.shape[1], classes - 1) else None
    gram = centred @ centred.T
    frame = np.eye(classes) - 1 / classes
    nearest = ((z[:, None, :] - means) ** 2).sum(axis=2).argmin(axis=1)
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=tolerance, hermitian=True)) / classes,
        "nc2": np.linalg.norm(gram / np.linalg.norm(gram) - frame / np.linalg.norm(frame)),
        "nc3": np.nan if weight is None else np.linalg.norm(unit(np.asarray(weight)) - unit(centred)),
        "nc4": np.nan if answers is None else (nearest != np.asarray(answers)).mean(),
    }


def unit(matrix):
    return matrix / np.linalg.norm(matrix)


def rank(features, tolerance):
    """Singular values of the matrix itself above the tolerance times the largest."""
    values = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    return int((values > tolerance * values[0]).sum())


def probe_accuracy(features, labels, tested, truth):
    """scikit-learn's ridge regression of one-hot labels, with the same penalty, by its own solver."""
    z, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    penalty = 1e-6 * ((z - z.mean(axis=0)) ** 2).sum() / z.shape[1]
    ridge = Ridge(alpha=penalty, solver="svd").fit(z, np.eye(int(y.max()) + 1)[y])
    return (ridge.predict(np.asarray(tested, dtype=np.float64)).argmax(axis=1) == np.asarray(truth)).mean()
