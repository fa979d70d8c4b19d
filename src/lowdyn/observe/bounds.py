"""The layerwise theorem on a trained deep linear network: its assumptions measured, its bounds, their slack."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import one_hot

from lowdyn.arguments import checked_count, checked_matrix, checked_number
from lowdyn.networks import DeepLinearNetwork
from lowdyn.observe.metrics import layer_metrics
from lowdyn.problems import Regression

SMALLEST_DISCRIMINATION = 0.0  # 1 − max cos, when two class means are parallel


def layerwise_bounds(
    network: DeepLinearNetwork,
    inputs: Any,
    labels: Any,
    num_classes: int,
    *,
    c: float = 1.0,
    kappa: float = 1.0,
) -> xr.Dataset:
    """Measure on a trained network what the layerwise theorem assumes, and hold its bounds against the features.

    ``inputs`` X is (d, N), columns are samples as in :class:`~lowdyn.problems.Regression`; ``labels`` (N,) are
    whole numbers below ``num_classes`` K, n = N/K of each. The network has L ≥ 2 weights, all d × d but the last,
    K × d, with d > 2K. Computed in float64; the network is left as it is.

    The theorem (Wang et al. 2023, arXiv 2311.02960) assumes, and the scalars of the answer measure:

    - ``theta``: the smallest θ with |‖x_i‖² − 1| ≤ θ/N and |⟨x_i, x_j⟩| ≤ θ/N
    - ``minimum_norm_residual``: ‖W_{L:1} − Y X⁺‖_F / ‖Y X⁺‖_F with Y one-hot; X⁺ = (XᵀX)⁻¹Xᵀ for independent samples
    - ``balancedness``: the largest ‖W_{l+1}ᵀW_{l+1} − W_l W_lᵀ‖_F for l ≤ L − 2, zero in the theorem (and for L = 2)
    - ``delta``: ‖W_LᵀW_L − W_{L−1}W_{L−1}ᵀ‖_F ≤ δ
    - ``bulk_scale`` ε and ``bulk_spread`` ρ: the smallest with ε − ρ ≤ σ_i(W_l) ≤ ε, K < i ≤ d − K, l ≤ L − 1

    It concludes for l = 1 … L − 2; the variables over ``layer`` = 0 … L − 2 compare, the input l = 0 included:

    - c ε² / (κ (4n)^(1/L)) ≤ D_{l+1}/D_l ≤ κ ε² / (c (n/2)^(1/L)): ``compression_ratio`` D_{l+1}/D_l of
      :func:`~lowdyn.layer_metrics`, the scalars ``ratio_lower`` and ``ratio_upper``, ``ratio_inside``, and
      ``slack_lower`` = ratio/lower, ``slack_upper`` = upper/ratio, both at least 1 inside
    - 1 − (32 (θ + 4δ)/L)(L − l − 1) + o(1) ≤ ``class_discrimination``: ``discrimination_lower`` without the o(1),
      ``discrimination_holds``, and ``vacuous`` where the bound is no more than 0, which any features satisfy

    The lecture leaves c ≤ 1 ≤ κ undefined; 1, the default of both, is the sharpest test. From an orthogonal start
    of scale ε gradient flow conserves δ = ε²√(d − K): the second bound is then vacuous at ordinary sizes. NaN
    where classes are collapsed to points, whose ratio is 0/0.

    TypeError or ValueError: another network, weights or inputs of other shapes, classes of unequal size, c or κ
    on the wrong side of 1.

    >>> from torch.nn.functional import one_hot
    >>> from lowdyn import Descent, gradient_descent
    >>> net = DeepLinearNetwork((12, 12, 12, 3), 0.4, generator=torch.Generator().manual_seed(0))
    >>> inputs, labels = torch.eye(12, dtype=torch.float64), torch.arange(3).repeat_interleave(4)
    >>> problem = Regression(inputs, one_hot(labels).T.to(inputs), reduction="sum")
    >>> _ = gradient_descent(net, problem, Descent(lr=0.05), steps=1000, every=1000)
    >>> bounds = layerwise_bounds(net, inputs, labels, num_classes=3)
    >>> bounds["ratio_inside"].values.tolist(), bounds["vacuous"].values.tolist()
    ([True, True], [True, True])
    """
    num_classes = checked_count("num_classes", num_classes, at_least=2)
    c, kappa = _checked_constants(c, kappa)
    weights, samples = _checked_shapes(network, inputs, num_classes)
    depth, width, count = len(weights), samples.shape[0], samples.shape[1]
    # In float64 also where the network is not: rounded features have a within-class scatter of their own.
    exact = DeepLinearNetwork.from_weights(weights)
    features = layer_metrics(exact, [(samples.T, labels)], num_classes, r"^W\d+$").isel(layer=slice(depth))
    classes = torch.as_tensor(labels).to(samples.device, torch.int64)
    per_class = _checked_balance(classes, num_classes)

    theta = count * float((samples.T @ samples - torch.eye(count).to(samples)).abs().max())
    solution = Regression(samples, one_hot(classes, num_classes).T.to(samples)).solution()
    gaps = [float((above.T @ above - below @ below.T).norm()) for below, above in pairwise(weights)]
    bulk = torch.stack([torch.linalg.svdvals(weight)[num_classes : width - num_classes] for weight in weights[:-1]])
    scale = float(bulk.max())
    scalars = {
        "theta": theta,
        "minimum_norm_residual": float((exact.end_to_end() - solution).norm() / solution.norm()),
        "balancedness": max(gaps[:-1], default=0.0),
        "delta": gaps[-1],
        "bulk_scale": scale,
        "bulk_spread": scale - float(bulk.min()),
        "ratio_lower": c / kappa * scale**2 / (4 * per_class) ** (1 / depth),
        "ratio_upper": kappa / c * scale**2 / (per_class / 2) ** (1 / depth),
    }
    layer = np.arange(depth - 1)
    compression = features["within_between_ratio"].values
    discrimination = features["class_discrimination"].values[:-1]
    bound = 1 - 32 * (theta + 4 * gaps[-1]) / depth * (depth - layer - 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # collapsed classes, or a bulk of zeros
        ratio = compression[1:] / compression[:-1]
        slack = {"slack_lower": ratio / scalars["ratio_lower"], "slack_upper": scalars["ratio_upper"] / ratio}
    columns = {
        "compression_ratio": ratio,
        "ratio_inside": (scalars["ratio_lower"] <= ratio) & (ratio <= scalars["ratio_upper"]),
        **slack,
        "class_discrimination": discrimination,
        "discrimination_lower": bound,
        "discrimination_holds": discrimination >= bound,
        "vacuous": bound <= SMALLEST_DISCRIMINATION,
    }
    return xr.Dataset(
        {**scalars, **{name: ("layer", column) for name, column in columns.items()}},
        coords={"layer": layer},
        attrs={"depth": depth, "width": width, "num_classes": num_classes, "per_class": per_class}
        | {"c": c, "kappa": kappa},
    )


def _checked_constants(c: float, kappa: float) -> tuple[float, float]:
    c = checked_number("c", c, at_least=torch.finfo(torch.float64).tiny, below=math.nextafter(1.0, 2.0))
    return c, checked_number("kappa", kappa, at_least=1.0)


def _checked_shapes(network: Any, inputs: Any, num_classes: int) -> tuple[list[Tensor], Tensor]:
    """Return weights and inputs in float64 on one device; the sizes must be those of the theorem."""
    if not isinstance(network, DeepLinearNetwork):
        raise TypeError(f"the layerwise theorem is about a DeepLinearNetwork, got {type(network).__name__}")
    if network.runs is not None:
        raise ValueError(f"this network holds {network.runs} runs; take one of them, network.run(i)")
    weights = [weight.to(torch.float64) for weight in network.weights]
    width = network.sizes[0]
    if network.depth < 2 or network.sizes != (*[width] * network.depth, num_classes) or width <= 2 * num_classes:
        raise ValueError(
            f"the theorem is about sizes (d, …, d, {num_classes}) with two weights or more and d > {2 * num_classes} "
            f"(twice the classes), got {network.sizes}"
        )
    samples = checked_matrix("inputs", inputs)
    if samples.ndim != 2 or samples.shape[0] != width:
        raise ValueError(f"inputs must be ({width}, samples), columns are samples; got {tuple(samples.shape)}")
    return weights, samples.to(weights[0])


def _checked_balance(labels: Tensor, num_classes: int) -> int:
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"the theorem is about classes of equal size, got {counts} samples; keep {min(counts)} of every class"
        )
    return int(counts[0])
