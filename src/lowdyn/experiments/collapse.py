"""Classification with deep networks on tiny balanced data: what the *orthonormal* experiments share.

K classes of n samples, d inputs, squares against one-hot labels, plain descent on the whole data until the
loss falls below a tolerance; then the features of every layer are measured.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import one_hot

from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.starts import STARTS
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP, DeepLinearNetwork
from lowdyn.observe import layer_metrics
from lowdyn.problems import Regression


def balanced(kind: str, width: int, classes: int, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return samples (width, classes · per_class) in float64, unit-norm "gaussian" or "orthonormal", and their labels.

    >>> balanced("orthonormal", 6, 2, 3, torch.Generator().manual_seed(0))[1]
    tensor([0, 0, 0, 1, 1, 1])
    """
    count = classes * per_class
    labels = torch.arange(classes).repeat_interleave(per_class)
    if kind == "orthonormal":
        return random_orthogonal(width, count, generator=generator), labels
    samples = torch.randn(width, count, generator=generator, dtype=torch.float64)
    return samples / samples.norm(dim=0), labels


def train_and_measure(
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: int,
    depth: int,
    init_scale: float,
    lr: float,
    generator: torch.Generator,
    reduction: str = "mean",
    activation: str = "linear",
    start: str = "orthogonal",
    tol: float = 1e-6,
    max_steps: int = 100_000,
    every: int = 100,
    measured_labels: Tensor | None = None,
) -> xr.Dataset:
    """Train on ``inputs`` (d, N) until the loss is below ``tol``; return the curve and the layers' metrics.

    Variables: ``loss`` (step), NaN after the end; ``steps``, the number of updates taken; over ``layer`` (0 is
    the input, the last hidden layer is depth − 1) ``within_between_ratio``, ``class_separation``,
    ``class_discrimination``, by the ``measured_labels`` if these are not the labels trained on (a control).
    """
    width = inputs.shape[0]
    linear = DeepLinearNetwork((*[width] * depth, classes), init_scale, start=STARTS[start], generator=generator)
    network: DeepLinearNetwork | MLP = linear if activation == "linear" else MLP.from_weights(linear.weights)
    problem = Regression(inputs, one_hot(labels, classes).T.to(inputs.dtype), reduction)
    trajectory = gradient_descent(network, problem, Descent(lr=lr), max_steps, every=every, tol=tol)
    features = r"^W\d+$" if isinstance(network, DeepLinearNetwork) else r"^relu\d+$"
    measured = labels if measured_labels is None else measured_labels
    metrics = layer_metrics(network, [(inputs.T, measured)], classes, features)
    metrics = metrics.isel(layer=slice(depth)).assign_coords(layer=range(depth)).drop_vars(["within", "between"])
    return metrics.assign(loss=trajectory["loss"], steps=int(trajectory["step"][-1]))
