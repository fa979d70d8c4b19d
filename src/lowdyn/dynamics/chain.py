"""One full-batch step through a chain of matrices: forward, backward and update, in buffers that are reused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowdyn.dynamics.rule import Descent
from lowdyn.problems import Problem


@dataclass(frozen=True)
class Part:
    """Matrices [W_1, …, W_L] that evolve by themselves, and the problem they solve.

    A network is one part. A reduced network is several, whose losses add up, each times its ``multiplicity``.
    ``rectified`` says after which matrices a ReLU follows.
    """

    weights: list[Tensor]
    problem: Problem
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
    def loss(self, *, last: bool = False) -> Tensor:
        """Return the loss at the present weights, one or one per run still training; ``last``: no step follows."""

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
    """The loop in torch, for any network and problem on any device."""

    def __init__(self, parts: Sequence[Part], descent: Descent) -> None:
        super().__init__(parts)
        self.parts = parts
        self.chains = [
            Chain(part.weights, descent, part.problem.scale, part.problem.inputs, part.rectified) for part in parts
        ]
        self.problems = [part.problem for part in parts]
        self.residuals: list[Tensor] | None = None  # of the present weights, once they are known
        of_problems = [problem.multiply_adds for problem in self.problems]
        self.multiply_adds = max(*of_problems, *(chain.multiply_adds for chain in self.chains))

    def loss(self, *, last: bool = False) -> Tensor:
        """Return the loss at the present weights, of all parts together."""
        self.residuals = self._forward()
        triples = zip(self.parts, self.problems, self.residuals, strict=True)
        losses = [part.multiplicity * problem.loss_of(residual) for part, problem, residual in triples]
        return sum(losses[1:], start=losses[0])

    def advance(self, rates: Sequence[float | Tensor]) -> None:
        """Make one update per learning rate."""
        for rate in rates:
            residuals = self._forward() if self.residuals is None else self.residuals
            self.residuals = None
            for chain, problem, residual in zip(self.chains, self.problems, residuals, strict=True):
                chain.backward(problem.pull_back(residual), rate)

    def _forward(self) -> list[Tensor]:
        pairs = zip(self.chains, self.problems, strict=True)
        return [problem.residual(chain.forward()) for chain, problem in pairs]

    def write_back(self) -> None:
        """Bring the network up to date with the runs that still train (they are copies once some have ended)."""
        if self.active is not None:
            for part, chain in zip(self.parts, self.chains, strict=True):
                for whole, present in zip(part.weights, chain.weights, strict=True):
                    whole[self.active] = present

    def _select(self, chosen: Tensor) -> None:
        self.residuals = None
        self.problems = [problem.select(chosen) for problem in self.problems]
        for chain, problem in zip(self.chains, self.problems, strict=True):
            chain.select(chosen, problem.inputs)


class Chain:
    """Factors that train: their product with the inputs, the buffers of it, their momentum.

    ``scale`` times what ``backward`` is given is the derivative of the loss with respect to the outputs.
    """

    def __init__(
        self,
        weights: list[Tensor],
        descent: Descent,
        scale: float,
        inputs: Tensor | None = None,
        rectified: Sequence[bool] = (),
    ) -> None:
        self.batched = weights[0].ndim == 3
        self.multiply = torch.bmm if self.batched else torch.mm
        self.descent, self.scale = descent, scale
        self.rectified = rectified or (False,) * len(weights)
        self.factor_rates = descent.rates_of_factors(len(weights))
        # Thin on the output side: there the chain starts, on transposed factors, which are views.
        columns = weights[0].shape[-1] if inputs is None else inputs.shape[-1]
        self.transposed = weights[-1].shape[-2] < columns and not any(self.rectified)
        if self.transposed:
            self.factor_rates = self.factor_rates[::-1]
        self.trains = any(self.factor_rates)
        self._start(weights, [torch.zeros_like(w) for w in weights] if descent.momentum else [], inputs)

    def _start(self, weights: list[Tensor], velocities: list[Tensor], inputs: Tensor | None) -> None:
        self.weights, self.velocities, self.inputs = weights, velocities, inputs
        self.chain = [w.mT for w in reversed(weights)] if self.transposed else weights
        self.chain_velocities = [v.mT for v in reversed(velocities)] if self.transposed else velocities
        first = None if self.transposed else inputs
        if first is None and any(self.rectified):
            first = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)
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

    def place(self, product: Tensor) -> None:
        """Let ``forward`` write the product of the factors, without inputs, into a matrix of the caller's layout."""
        if len(self.weights) == 1:
            product.copy_(self.weights[0])
            self._start([product], self.velocities, None)
        else:
            self.features[-1] = product.mT if self.transposed else product

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the largest product of a step, over all runs."""
        return self.features[0].shape[-1] * max(weight.numel() for weight in self.weights)

    def forward(self) -> Tensor:
        """Fill P_1 … P_L and return the outputs W_L … W_1 X."""
        below = self.first
        for factor, relu, feature in zip(self.chain, self.rectified, self.features, strict=True):
            if below is not None:
                self.multiply(factor, below, out=feature)
            if relu:
                feature.relu_()
            below = feature
        last = self.features[-1]
        if not self.transposed:
            return last
        return last.mT if self.inputs is None else last.mT @ self.inputs

    def backward(self, pulled: Tensor, rate: float | Tensor) -> None:
        """Pull the derivative with respect to the outputs back through the chain, updating every factor on the way.

        A factor of rate 0 stays as it is, to the bit, and its gradient is not computed.
        """
        if self.transposed:
            pulled = (pulled if self.inputs is None else pulled @ self.inputs.mT).mT
        if isinstance(rate, Tensor):
            rate = rate.to(pulled)[:, None, None]
        trained = [layer for layer, factor_rate in enumerate(self.factor_rates) if factor_rate]
        for layer in reversed(range(trained[0] if trained else len(self.chain), len(self.chain))):
            current, feature = pulled, self.features[layer - 1] if layer else self.first
            if layer > trained[0] and feature is not None:
                # Pulled through W_l before W_l changes.
                pulled = self.multiply(self.chain[layer].mT, current, out=self.pulled[layer - 1])
                if self.rectified[layer - 1]:
                    pulled.mul_(feature > 0)
            if self.factor_rates[layer]:
                self._update(layer, current, feature, rate * self.factor_rates[layer])

    def _update(self, layer: int, pulled: Tensor, feature: Tensor | None, rate: float | Tensor) -> None:
        weight, scale = self.chain[layer], self.scale
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

    def select(self, chosen: Tensor, inputs: Tensor | None = None) -> None:
        """Go on with copies of only the ``chosen`` runs, and their inputs."""
        self._start([w[chosen] for w in self.weights], [v[chosen] for v in self.velocities], inputs)
