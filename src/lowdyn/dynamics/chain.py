"""One full-batch step through a chain of matrices: forward, backward and update, in buffers that are reused."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowdyn.dynamics.rule import Descent
from lowdyn.problems import LeastSquares


class ChainRun:
    """The state of one call: the factors that still train, the buffers of their chain, their momentum."""

    def __init__(
        self, weights: list[Tensor], rectified: tuple[bool, ...], problem: LeastSquares, descent: Descent
    ) -> None:
        self.all_weights = weights
        self.active: Tensor | None = None  # indices of the runs still training; None while all are
        self.batched = weights[0].ndim == 3
        self.multiply = torch.bmm if self.batched else torch.mm
        self.descent = descent
        self.rectified = rectified
        self.factor_rates = descent.rates_of_factors(len(weights))
        # Thin on the output side: there the chain starts, on transposed factors, which are views.
        columns = problem.shape[1] if problem.inputs is None else problem.inputs.shape[-1]
        self.transposed = problem.shape[0] < columns and not any(rectified)
        if self.transposed:
            self.factor_rates = self.factor_rates[::-1]
        self._start(weights, [torch.zeros_like(w) for w in weights] if descent.momentum else [], problem)

    def _start(self, weights: list[Tensor], velocities: list[Tensor], problem: LeastSquares) -> None:
        self.weights, self.velocities, self.problem = weights, velocities, problem
        self.chain = [w.mT for w in reversed(weights)] if self.transposed else weights
        self.chain_velocities = [v.mT for v in reversed(velocities)] if self.transposed else velocities
        first = None if self.transposed else problem.inputs
        if first is None and any(self.rectified):
            first = torch.eye(problem.shape[1], dtype=weights[0].dtype, device=weights[0].device)
        if first is not None and self.batched and first.ndim == 2:
            first = first.expand(weights[0].shape[0], -1, -1)
        # P_1 … P_L. Without P_0 the first factor is its own output P_1 and needs no product.
        self.first = first
        self.features: list[Tensor] = []
        for factor in self.chain:
            below = self.features[-1] if self.features else first
            self.features.append(factor if below is None else factor.new_empty(*factor.shape[:-1], below.shape[-1]))
        # B_1 … B_{L-1}, the residual pulled back to each feature.
        self.pulled = [torch.empty_like(feature) for feature in self.features[:-1]]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the largest product of a step, over all runs."""
        return self.features[0].shape[-1] * max(weight.numel() for weight in self.weights)

    def forward(self) -> Tensor:
        """Fill P_1 … P_L and return the residual of the outputs."""
        below = self.first
        for factor, relu, feature in zip(self.chain, self.rectified, self.features, strict=True):
            if below is not None:
                self.multiply(factor, below, out=feature)
            if relu:
                feature.relu_()
            below = feature
        last = self.features[-1]
        if not self.transposed:
            return self.problem.residual(last)
        inputs = self.problem.inputs
        return self.problem.residual(last.mT if inputs is None else last.mT @ inputs)

    def backward(self, residual: Tensor, rate: float) -> None:
        """Pull the residual back through the chain, updating every factor on the way."""
        pulled = residual
        if self.transposed:
            inputs = self.problem.inputs
            pulled = (residual if inputs is None else residual @ inputs.mT).mT
        for layer in reversed(range(len(self.chain))):
            current, feature = pulled, self.features[layer - 1] if layer else self.first
            if layer and feature is not None:
                # Pulled through W_l before W_l changes.
                pulled = self.multiply(self.chain[layer].mT, current, out=self.pulled[layer - 1])
                if self.rectified[layer - 1]:
                    pulled.mul_(feature > 0)
            self._update(layer, current, feature, rate * self.factor_rates[layer])

    def _update(self, layer: int, pulled: Tensor, feature: Tensor | None, rate: float) -> None:
        weight, scale = self.chain[layer], self.problem.scale
        momentum, decay = self.descent.momentum, self.descent.weight_decay
        if self.descent.decoupled and decay:
            weight.mul_(1 - rate * decay)
            decay = 0.0
        if not momentum:
            self._accumulate(weight, pulled, feature, keep=1 - rate * decay, add=-rate * scale)
            return
        velocity = self.chain_velocities[layer]
        if self.descent.nesterov:
            gradient = weight * decay
            self._accumulate(gradient, pulled, feature, keep=1.0, add=scale)
            velocity.mul_(momentum).add_(gradient)
            weight.add_(gradient, alpha=-rate)
            weight.add_(velocity, alpha=-rate * momentum)
            return
        self._accumulate(velocity, pulled, feature, keep=momentum, add=scale)
        if decay:
            velocity.add_(weight, alpha=decay)
        weight.add_(velocity, alpha=-rate)

    def _accumulate(self, into: Tensor, pulled: Tensor, feature: Tensor | None, *, keep: float, add: float) -> None:
        """Set ``into`` to keep · into + add · B Pᵀ, in one pass of the matrix product that makes it."""
        if feature is None:
            if keep != 1.0:
                into.mul_(keep)
            into.add_(pulled, alpha=add)
        elif self.batched:
            into.baddbmm_(pulled, feature.mT, beta=keep, alpha=add)
        else:
            into.addmm_(pulled, feature.mT, beta=keep, alpha=add)

    def write_back(self) -> None:
        """Bring the network up to date with the runs that still train (they are copies once some have ended)."""
        if self.active is not None:
            for whole, part in zip(self.all_weights, self.weights, strict=True):
                whole[self.active] = part

    def keep(self, going: Tensor) -> None:
        """Train on only the runs marked in ``going``: the others stay in the network as they are."""
        active = torch.arange(len(going), device=going.device) if self.active is None else self.active
        self.active = active[going]
        chosen = torch.nonzero(going)[:, 0]
        self._start(
            [weight[chosen] for weight in self.weights],
            [velocity[chosen] for velocity in self.velocities],
            self.problem.select(chosen),
        )

    def spread(self, loss: Tensor) -> np.ndarray:
        """Return one loss per run of the call, NaN for those that have ended."""
        values = np.full(self.all_weights[0].shape[0], np.nan)
        values[slice(None) if self.active is None else self.active.cpu().numpy()] = loss.cpu().numpy()
        return values
