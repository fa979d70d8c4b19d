"""One full-batch step through a chain of matrices: forward, backward and update, in buffers that are reused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowdyn.dynamics.rule import Descent
from lowdyn.problems import LeastSquares


@dataclass(frozen=True)
class Part:
    """Matrices [W_1, …, W_L] that evolve by themselves, and the problem they solve.

    A network is one part. A reduced network is several, whose losses add up, each times its ``multiplicity``.
    ``rectified`` says after which matrices a ReLU follows.
    """

    weights: list[Tensor]
    problem: LeastSquares
    multiplicity: float = 1.0
    rectified: tuple[bool, ...] = ()


def total_loss(parts: Sequence[Part], weights: Sequence[list[Tensor]] | None = None) -> Tensor:
    """Return the loss of linear ``parts`` together, at their own weights or at others of the same shapes."""
    total = torch.zeros(())
    for part, chain in zip(parts, weights or [part.weights for part in parts], strict=True):
        product = chain[0]
        for weight in chain[1:]:
            product = weight @ product
        total = total + part.multiplicity * part.problem.loss(product)
    return total


class Loop(ABC):
    """The state of one call of gradient_descent: the parts that train, and which of the runs side by side still do."""

    check_every = 100  # steps between looks at whether the loss is still finite
    multiply_adds: int
    """Multiply-adds of the largest product of a step, over all runs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        first = parts[0].weights[0]
        self.runs = first.shape[0] if first.ndim == 3 else None
        self.active: Tensor | None = None  # indices of the runs still training; None while all are

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the loss at the present weights; one number, or one per run still training."""

    @abstractmethod
    def advance(self, rates: Sequence[float | Tensor]) -> None:
        """Make one update per learning rate, a number or one per run still training."""

    @abstractmethod
    def write_back(self) -> None:
        """Bring the weights of all parts up to date."""

    @abstractmethod
    def _select(self, chosen: Tensor) -> None:
        """Go on with only the ``chosen`` of the runs still training."""

    def keep(self, going: Tensor) -> None:
        """Train on only the runs marked in ``going``: the others stay in the network as they are."""
        active = torch.arange(len(going), device=going.device) if self.active is None else self.active
        self.active = active[going]
        self._select(torch.nonzero(going)[:, 0])

    def rate(self, rate: float | tuple[float, ...]) -> float | Tensor:
        """Return a learning rate in the form that ``advance`` takes: of the runs still training."""
        if not isinstance(rate, tuple):
            return rate
        rates = torch.tensor(rate, dtype=torch.float64)
        return rates if self.active is None else rates[self.active.cpu()]

    def spread(self, loss: Tensor, *, ended: float = np.nan) -> np.ndarray:
        """Return one loss per run of the call, ``ended`` for those that have ended."""
        values = np.full(self.runs or 1, ended)
        values[slice(None) if self.active is None else self.active.cpu().numpy()] = loss.cpu().numpy()
        return values


class ChainLoop(Loop):
    """The loop in torch, for any network on any device."""

    def __init__(self, parts: Sequence[Part], descent: Descent) -> None:
        super().__init__(parts)
        self.parts = parts
        self.chains = [Chain(part, descent) for part in parts]
        self.multiply_adds = max(chain.multiply_adds for chain in self.chains)

    def loss(self) -> Tensor:
        """Return the loss at the present weights, of all parts together."""
        return sum((chain.loss() for chain in self.chains[1:]), start=self.chains[0].loss())

    def advance(self, rates: Sequence[float | Tensor]) -> None:
        """Make one update per learning rate."""
        like = self.chains[0].weights[0]
        for rate in rates:
            shaped = rate.to(like)[:, None, None] if isinstance(rate, Tensor) else rate
            for chain in self.chains:
                chain.step(shaped)

    def write_back(self) -> None:
        """Bring the network up to date with the runs that still train (they are copies once some have ended)."""
        if self.active is not None:
            for part, chain in zip(self.parts, self.chains, strict=True):
                for whole, present in zip(part.weights, chain.weights, strict=True):
                    whole[self.active] = present

    def _select(self, chosen: Tensor) -> None:
        for chain in self.chains:
            chain.select(chosen)


class Chain:
    """One part at work: the factors that still train, the buffers of their chain, their momentum."""

    def __init__(self, part: Part, descent: Descent) -> None:
        weights, problem = part.weights, part.problem
        self.multiplicity = part.multiplicity
        self.batched = weights[0].ndim == 3
        self.multiply = torch.bmm if self.batched else torch.mm
        self.descent = descent
        self.rectified = part.rectified or (False,) * len(weights)
        self.factor_rates = descent.rates_of_factors(len(weights))
        # Thin on the output side: there the chain starts, on transposed factors, which are views.
        columns = problem.shape[1] if problem.inputs is None else problem.inputs.shape[-1]
        self.transposed = problem.shape[0] < columns and not any(self.rectified)
        if self.transposed:
            self.factor_rates = self.factor_rates[::-1]
        self._start(weights, [torch.zeros_like(w) for w in weights] if descent.momentum else [], problem)

    def _start(self, weights: list[Tensor], velocities: list[Tensor], problem: LeastSquares) -> None:
        self.weights, self.velocities, self.problem = weights, velocities, problem
        self.residual: Tensor | None = None  # of the present weights, once it is known
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

    def loss(self) -> Tensor:
        """Return the part's share of the loss at the present weights; one number, or one per run still training."""
        self.residual = self._forward()
        return self.multiplicity * self.problem.loss_of(self.residual)

    def step(self, rate: float | Tensor) -> None:
        """Make one update."""
        residual = self._forward() if self.residual is None else self.residual
        self.residual = None
        self._backward(residual, rate)

    def _forward(self) -> Tensor:
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

    def _backward(self, residual: Tensor, rate: float | Tensor) -> None:
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

    def _update(self, layer: int, pulled: Tensor, feature: Tensor | None, rate: float | Tensor) -> None:
        weight, scale = self.chain[layer], self.problem.scale
        momentum, decay = self.descent.momentum, self.descent.weight_decay
        if self.descent.decoupled and decay:
            weight.mul_(1 - rate * decay)
            decay = 0.0
        if not momentum and not isinstance(rate, Tensor):
            self._accumulate(weight, pulled, feature, keep=1 - rate * decay, add=-rate * scale)
            return
        if momentum and not self.descent.nesterov:
            direction = self.chain_velocities[layer]
            self._accumulate(direction, pulled, feature, keep=momentum, add=scale)
            if decay:
                direction.add_(weight, alpha=decay)
        else:
            direction = weight * decay
            self._accumulate(direction, pulled, feature, keep=1.0, add=scale)
            if momentum:
                velocity = self.chain_velocities[layer]
                velocity.mul_(momentum).add_(direction)
                direction.add_(velocity, alpha=momentum)
        if isinstance(rate, Tensor):
            weight.sub_(rate * direction)
        else:
            weight.add_(direction, alpha=-rate)

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

    def select(self, chosen: Tensor) -> None:
        """Go on with copies of only the ``chosen`` runs."""
        self._start(
            [weight[chosen] for weight in self.weights],
            [velocity[chosen] for velocity in self.velocities],
            self.problem.select(chosen),
        )
