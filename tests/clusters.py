"""Features of classes, a network that repeats them, and their statistics in extended precision."""

import numpy as np
import torch

from lowdyn import DeepLinearNetwork
from tests.cases import gaussian
from tests.oracles import layer_statistics


def look_through(width):
    """Return a network whose only layer repeats its input to the bit."""
    return DeepLinearNetwork.from_weights([torch.eye(width, dtype=torch.float64)])


def clusters(*, spread=1.0, offset=0.0, counts=(9, 9, 9), width=5, seed=0):
    """Return features of classes with Gaussian means, in class order, and their labels."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = gaussian(len(counts), width, seed=seed)
    return offset + means[labels] + spread * gaussian(len(labels), width, seed=seed + 1), labels


def assert_statistics(metrics, layer, features, labels, *, balanced=True, tolerance=1e-10):
    """Compare with the two passes in extended precision; cosines near 1 lose digits before 1 − cos is taken."""
    expected = layer_statistics(features, labels, balanced=balanced)
    assert set(expected) == set(metrics.data_vars)
    for name, value in expected.items():
        absolute = 1e-13 if name.startswith("class") else 0.0
        np.testing.assert_allclose(metrics[name].sel(layer=layer), value, rtol=tolerance, atol=absolute, err_msg=name)
