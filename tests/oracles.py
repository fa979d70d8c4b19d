"""Slow twins: the same numbers by another road, short enough to be believed."""

from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn import Descent

Arrays = list[np.ndarray]


def descend_by_autograd(
    weights: list[Tensor],
    inputs: Tensor,
    targets: Tensor,
    descent: Descent,
    steps: int,
    *,
    scale: float,
    rectified: tuple[bool, ...] | None = None,
    mask: Tensor | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Run torch.optim.SGD on ½ scale ‖W_L … W_1 X − Y‖², on all entries or where ``mask`` is True, one parameter group
    per factor; weights and losses."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    rates = descent.factor_rates or (1.0,) * len(parameters)
    optimizer = torch.optim.SGD(
        [{"params": [parameter]} for parameter in parameters],
        lr=0.0,
        momentum=descent.momentum,
        nesterov=descent.nesterov,
        weight_decay=0.0 if descent.decoupled else descent.weight_decay,
    )
    losses = []
    for step in range(steps + 1):
        outputs = inputs
        for layer, parameter in enumerate(parameters):
            outputs = parameter @ outputs
            if rectified and rectified[layer]:
                outputs = outputs.relu()
        errors = outputs - targets
        loss = 0.5 * scale * (errors if mask is None else errors[mask]).square().sum()
        losses.append(loss.item())
        if step == steps:
            break
        optimizer.zero_grad()
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (descent.lr(step) if callable(descent.lr) else descent.lr)
            if descent.decoupled:
                with torch.no_grad():
                    group["params"][0].mul_(1 - group["lr"] * descent.weight_decay)
        optimizer.step()
    return [parameter.detach() for parameter in parameters], losses


def descend_whitened(
    weights: Arrays, correlation: np.ndarray, *, stretch: float, scale: float, descent: Descent, steps: int
) -> Arrays:
    """Run theory §1 as it is written: G_l = s W_{L:l+1}ᵀ (α W_{L:1} − Φ) W_{l−1:1}ᵀ + λ W_l, with momentum μ."""
    weights = [weight.copy() for weight in weights]
    velocities = [np.zeros_like(weight) for weight in weights]
    for _ in range(steps):
        gradients = []
        for layer, weight in enumerate(weights):
            above = _product(weights[layer + 1 :], weight.shape[0])
            below = _product(weights[:layer], weights[0].shape[1])
            error = stretch * above @ weight @ below - correlation
            gradients.append(scale * above.T @ error @ below.T + descent.weight_decay * weight)
        for layer, gradient in enumerate(gradients):
            velocities[layer] = descent.momentum * velocities[layer] + gradient
            move = gradient + descent.momentum * velocities[layer] if descent.nesterov else velocities[layer]
            weights[layer] = weights[layer] - descent.lr * move
    return weights


def _product(weights: Arrays, size: int) -> np.ndarray:
    return reduce(lambda product, weight: weight @ product, weights, np.eye(size))


def descend_scaled(left: Tensor, right: Tensor, target: Tensor, mask: Tensor, *, eta: float, steps: int) -> Tensor:
    """Run Algorithm 1 of Tong, Ma and Chi 2021 on (1/2p)‖Ω ⊙ (L Rᵀ − X)‖²; the last L Rᵀ."""
    fraction = mask.double().mean()
    for _ in range(steps):
        residual = mask * (left @ right.mT - target) / fraction
        of_left = residual @ right @ torch.linalg.inv(right.mT @ right)
        of_right = residual.mT @ left @ torch.linalg.inv(left.mT @ left)
        left, right = left - eta * of_left, right - eta * of_right
    return left @ right.mT


def inert_recursion(
    scales: list[float], *, stretch: float, scale: float, descent: Descent, steps: int, decays_only: bool
) -> np.ndarray:
    """Theory §2, one line: ρ_l ← ρ_l (1 − ηλ − ηsα Π_{j≠l} ρ_j²), or ρ_l (1 − ηλ) where the last layer has none."""
    rho, velocity, rows = np.array(scales), np.zeros(len(scales)), [np.array(scales)]
    for _ in range(steps):
        others = np.array([np.prod(np.delete(rho, layer) ** 2) for layer in range(len(rho))])
        gradient = rho * (descent.weight_decay + (0.0 if decays_only else scale * stretch * others))
        velocity = descent.momentum * velocity + gradient
        move = gradient + descent.momentum * velocity if descent.nesterov else velocity
        rho = rho - descent.lr * move
        rows.append(rho)
    return np.array(rows)


def block_form(orthogonals: Arrays, bases: Arrays, cores: Arrays, rho: np.ndarray, *, last_is_active: bool) -> Arrays:
    """Return W_l = B_l W̃_l B_{l−1}ᵀ + ρ_l (Q_l − B_l B_{l−1}ᵀ) (theory §2); the last layer may have no complement."""
    weights = []
    for layer, (q, core) in enumerate(zip(orthogonals, cores, strict=True)):
        active = bases[layer + 1] @ core @ bases[layer].T
        if last_is_active and layer == len(cores) - 1:
            weights.append(active)
        else:
            weights.append(active + rho[layer] * (q - bases[layer + 1] @ bases[layer].T))
    return weights


def layer_statistics(features: Any, labels: Any, *, balanced: bool = True) -> dict[str, float]:
    """Theory §4 in two passes over extended-precision numbers (64 bits of mantissa)."""
    z, y = np.asarray(features, dtype=np.longdouble), np.asarray(labels)
    classes = np.unique(y)
    groups = [z[y == k] for k in classes]
    share = np.array([1 / len(classes) if balanced else np.longdouble(len(g)) / len(z) for g in groups])
    means = np.array([g.sum(axis=0) / len(g) for g in groups])
    spreads = np.array([((g - mean) ** 2).sum() / len(g) for g, mean in zip(groups, means, strict=True)])
    centred = means - share @ means
    within, between = share @ spreads, share @ (centred**2).sum(axis=1)
    return {
        "within_between_ratio": float(within / between),
        "class_separation": float(1 - max(abs(c) for c in _cosines(centred))),
        "class_discrimination": float(1 - max(_cosines(means))),
        "within": float(within),
        "between": float(between),
    }


def _cosines(vectors: np.ndarray) -> list[np.longdouble]:
    norms = np.sqrt((vectors**2).sum(axis=1))
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i)]
    return [(vectors[i] @ vectors[j]) / (norms[i] * norms[j]) for i, j in pairs]
