"""Full-batch gradient descent in closed form: no autograd, one pass of matrix products a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowdyn import __version__
from lowdyn.arguments import checked_count, checked_number
from lowdyn.dynamics.prediction import stable_lr
from lowdyn.problems import LeastSquares
from lowdyn.trajectory import Probe, Recorder

CHECK_EVERY = 100  # steps between looks at whether the loss is still finite


class Network(Protocol):
    """What descent needs of a network: its matrices, to be updated in place, and where its ReLUs are."""

    @property
    def weights(self) -> list[Tensor]:
        """[W_1, …, W_L], each (…, out, in), sharing memory with the network."""
        ...

    @property
    def rectified(self) -> tuple[bool, ...]:
        """Whether a ReLU follows weight l."""
        ...


@dataclass(frozen=True)
class Descent:
    """A step rule with torch.optim.SGD's conventions to the letter.

    ``lr`` is a number, or a function of the step (0 for the first update). With weight decay λ the gradient
    is G + λ W, or, ``decoupled``, the weights shrink by 1 − lr λ before the step as in AdamW; the momentum
    buffer is v ← μ v + G, and the update W ← W − lr v (heavy ball) or W − lr (G + μ v) (Nesterov).
    ``factor_rates`` multiplies lr per factor, first layer first: the discrepant learning rate.

    ValueError or TypeError where a value alone shows that it cannot be meant.

    >>> Descent(lr=0.1, momentum=0.9).weight_decay
    0.0
    """

    lr: float | Callable[[int], float]
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    factor_rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not callable(self.lr):
            checked_number("lr", self.lr, at_least=0.0)
        checked_number("momentum", self.momentum, at_least=0.0)
        checked_number("weight_decay", self.weight_decay, at_least=0.0)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov=True needs a momentum above 0, as in torch.optim.SGD")
        if self.factor_rates is not None:
            rates = tuple(checked_number("every factor rate", rate, at_least=0.0) for rate in self.factor_rates)
            object.__setattr__(self, "factor_rates", rates)

    def rate(self, step: int) -> float:
        """Return the learning rate of update ``step``; ValueError if a schedule gives no finite number ≥ 0."""
        if callable(self.lr):
            return checked_number(f"lr({step})", self.lr(step), at_least=0.0)
        return float(self.lr)

    def rates_of_factors(self, depth: int) -> tuple[float, ...]:
        """Return the multiplier of each of ``depth`` factors; ValueError if ``factor_rates`` has another length."""
        if self.factor_rates is None:
            return (1.0,) * depth
        if len(self.factor_rates) != depth:
            raise ValueError(f"factor_rates has {len(self.factor_rates)} entries, the network {depth} factors")
        return self.factor_rates


class DivergenceError(ArithmeticError):
    """A run left the finite numbers. ``trajectory`` holds the records made while it was finite."""

    def __init__(self, message: str, trajectory: xr.Dataset) -> None:
        super().__init__(message)
        self.trajectory = trajectory


def gradient_descent(
    network: Network,
    problem: LeastSquares,
    descent: Descent,
    steps: int,
    record: Probe | Sequence[Probe] | None = None,
    every: int = 1,
    *,
    tol: float | None = None,
) -> xr.Dataset:
    """Train ``network`` on the whole of ``problem`` for ``steps`` updates, in place; return the trajectory.

    ``trajectory["loss"]`` is the data loss, without the decay term, at steps 0, every, 2·every, … and the
    last; its dimensions are (step,), or (step, run) when the weights have a leading dimension of runs.
    ``record`` is a probe or several (:class:`~lowdyn.Spectra`, …), looked through at the same steps. With
    ``tol`` a run ends at the first recorded step whose loss is below it; among several runs the others go on
    and its losses are NaN from then on.

    ``network`` is a DeepLinearNetwork, or an MLP without biases; ``problem`` is taken to its dtype and device.

    The gradient of factor l is B_l P_{l−1}ᵀ with P_l = W_l P_{l−1} (and ReLU where there is one), P_0 = X, and
    B_{l−1} = W_lᵀ B_l, B_L the scaled residual: 3(L − 1) products a step for square factorization, the update
    fused into the last of them. A linear network with fewer outputs than columns runs the same chain
    transposed.

    Raises ValueError or TypeError for arguments that do not fit, :class:`DivergenceError` with step, rate and
    the largest stable rate when the loss is no longer finite.

    >>> from lowdyn import DeepLinearNetwork
    >>> from lowdyn.problems import Factorization
    >>> net = DeepLinearNetwork.from_weights([[[1.0]], [[1.0]]])
    >>> trajectory = gradient_descent(net, Factorization([[4.0]]), Descent(lr=0.1), steps=50, every=25)
    >>> trajectory["step"].values, bool(trajectory["loss"][-1] < 1e-9)
    (array([ 0, 25, 50]), True)
    """
    steps = checked_count("steps", steps)
    every = checked_count("every", every, at_least=1)
    tol = None if tol is None else checked_number("tol", tol, at_least=0.0)
    fitted = _checked_problem(network, problem)
    start = [weight.clone() for weight in network.weights]
    run = _Run(network.weights, network.rectified, fitted, descent)
    looks = [probe.begin(network) for probe in _probes(record)]
    coords = {name: values for look in looks for name, values in look.coords.items()}
    if run.batched:
        coords["run"] = np.arange(len(start[0]))
    recorder = Recorder(coords)
    attrs = _attributes(network, problem, descent, steps=steps, every=every, tol=tol)

    for step in range(steps + 1):
        residual = run.forward()
        recording = step % every == 0 or step == steps
        if recording or step % CHECK_EVERY == 0:
            loss = run.problem.loss_of(residual)
            if not bool(torch.isfinite(loss).all()):
                stable = stable_lr(
                    fitted, len(start), weights=start, momentum=descent.momentum, nesterov=descent.nesterov
                )
                message = _divergence(loss, step, descent, stable, linear=not any(network.rectified))
                raise DivergenceError(message, recorder.dataset(attrs))
        if recording:
            run.write_back()
            values: dict[str, Any] = {"loss": (("run",), run.spread(loss)) if run.batched else ((), loss.item())}
            for look in looks:
                values.update(look(step))
            recorder.add(step, values)
            if tol is not None and bool((loss < tol).all()):
                break
            if tol is not None and run.batched and bool((loss < tol).any()):
                run.keep(loss >= tol)
                residual = run.forward()
        if step < steps:
            run.backward(residual, descent.rate(step))
    return recorder.dataset(attrs)


class _Run:
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
        # P_0 … P_L. Without P_0 the first factor is its own output P_1 and needs no product.
        self.features: list[Tensor | None] = [first]
        for factor in self.chain:
            below = self.features[-1]
            rows = (*factor.shape[:-1],)
            self.features.append(factor if below is None else factor.new_empty(*rows, below.shape[-1]))
        # B_1 … B_{L-1}, the residual pulled back to each feature.
        self.pulled = [torch.empty_like(feature) for feature in self.features[1:-1] if feature is not None]

    def forward(self) -> Tensor:
        """Fill P_1 … P_L and return the residual of the outputs."""
        for layer, (factor, relu) in enumerate(zip(self.chain, self.rectified, strict=True)):
            below, feature = self.features[layer], self.features[layer + 1]
            if below is not None:
                self.multiply(factor, below, out=feature)
            if relu:
                feature.relu_()  # type: ignore[union-attr]
        last = self.features[-1]
        assert last is not None
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
            feature = self.features[layer]
            current = pulled
            if layer > 0:
                # Pulled through W_l before W_l changes.
                pulled = self.multiply(self.chain[layer].mT, current, out=self.pulled[layer - 1])
                if self.rectified[layer - 1]:
                    pulled.mul_(feature > 0)  # type: ignore[operator]
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


def _checked_problem(network: Network, problem: LeastSquares) -> LeastSquares:
    """Return ``problem`` in the network's dtype and device, condensed for a linear network; errors if unfit."""
    if not isinstance(problem, LeastSquares):
        raise TypeError(f"problem must be a Factorization or Regression, got {type(problem).__name__}")
    if any(getattr(factor, "bias", None) is not None for factor in getattr(network, "factors", ())):
        raise TypeError("gradient_descent trains networks without biases (MLP(…, bias=False)); use lowdyn.train")
    if getattr(network, "output_scale", 1.0) != 1.0:
        raise TypeError("gradient_descent trains networks of output_scale 1; scale the targets, or use lowdyn.train")
    weights = network.weights
    shape = (weights[-1].shape[-2], weights[0].shape[-1])
    if shape != problem.shape:
        raise ValueError(f"the network maps {shape[1]} inputs to {shape[0]} outputs, the problem {problem.shape[::-1]}")
    runs = weights[0].shape[0] if weights[0].ndim == 3 else None
    if problem.runs is not None and problem.runs != runs:
        raise ValueError(f"the problem holds {problem.runs} runs, the network {runs or 'no dimension of runs'}")
    problem = problem.to(weights[0].dtype, weights[0].device)
    return problem if any(network.rectified) else problem.condensed()


def _probes(record: Probe | Sequence[Probe] | None) -> Sequence[Probe]:
    if record is None:
        return ()
    return record if isinstance(record, Sequence) else (record,)


def _divergence(loss: Tensor, step: int, descent: Descent, stable: float, *, linear: bool) -> str:
    where = ""
    if loss.ndim:
        where = f" in runs {torch.nonzero(~torch.isfinite(loss))[:, 0].tolist()}"
    whose = "here" if linear else "for the linear network of this depth"
    return (
        f"descent diverged{where}: the loss is not finite at step {step} with lr {descent.rate(max(step - 1, 0)):g}; "
        f"the largest stable rate {whose} is about {stable:.3g}; lower lr below it"
    )


def _attributes(network: Network, problem: LeastSquares, descent: Descent, **call: Any) -> dict[str, Any]:
    weights = network.weights
    rule = {name: repr(value) if callable(value) else value for name, value in asdict(descent).items()}
    return {
        "network": type(network).__name__,
        "sizes": [weights[0].shape[-1], *(w.shape[-2] for w in weights)],
        "problem": type(problem).__name__,
        "dtype": str(weights[0].dtype).removeprefix("torch."),
        "lowdyn": __version__,
        "torch": torch.__version__,
        **rule,
        **call,
    }
