"""Full-batch gradient descent in closed form: no autograd, one pass of matrix products a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowdyn import __version__
from lowdyn.arguments import checked_count, checked_number
from lowdyn.dynamics.chain import ChainLoop, Loop, Part
from lowdyn.dynamics.prediction import stable_lr
from lowdyn.dynamics.rule import Descent, ScaledDescent
from lowdyn.dynamics.split import SplitLoop, splits
from lowdyn.problems import Problem
from lowdyn.trajectory import Probe, Recorder, coordinates, observations

SMALL = 4e6  # multiply-adds of a product below which a second thread costs more than it brings


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


class DivergenceError(ArithmeticError):
    """A run left the finite numbers. ``trajectory`` holds the records made while it was finite.

    >>> from lowdyn.networks import DeepLinearNetwork
    >>> from lowdyn.problems import Factorization
    >>> network = DeepLinearNetwork((2, 2, 2), 0.1, generator=torch.Generator().manual_seed(0))
    >>> try:
    ...     gradient_descent(network, Factorization([[4.0, 0.0], [0.0, 2.0]], "sum"), Descent(lr=10.0), steps=100)
    ... except DivergenceError as error:
    ...     len(error.trajectory["loss"])
    5
    """

    def __init__(self, message: str, trajectory: xr.Dataset) -> None:
        super().__init__(message)
        self.trajectory = trajectory


def gradient_descent(
    network: Network,
    problem: Problem,
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

    ``network`` is a DeepLinearNetwork, a reduced one (:func:`~lowdyn.reduce_network`, compiled on a CPU), or an MLP
    without biases; ``problem`` is taken to its dtype and device.

    The gradient of factor l is B_l P_{l−1}ᵀ with P_l = W_l P_{l−1} (and ReLU where there is one), P_0 = X, and
    B_{l−1} = W_lᵀ B_l, B_L the scaled residual: 3(L − 1) products a step for square factorization, the update
    fused into the last of them. A linear network with fewer outputs than columns runs the same chain
    transposed. A completion through a narrow dimension on a CPU touches observed entries only: the chain is split
    there into A B, and each half carries R Bᵀ or Aᵀ R to its factors (:mod:`lowdyn.dynamics.split`). A factor of rate 0
    in ``factor_rates`` stays to the bit and costs no gradient.

    Raises ValueError or TypeError for arguments that do not fit, :class:`DivergenceError` with step, rate and
    the largest stable rate when the loss is no longer finite.

    >>> from lowdyn import DeepLinearNetwork
    >>> from lowdyn.problems import Factorization
    >>> net = DeepLinearNetwork.from_weights([[[1.0]], [[1.0]]])
    >>> trajectory = gradient_descent(net, Factorization([[4.0]]), Descent(lr=0.1), steps=50, every=25)
    >>> trajectory["step"].values, bool(trajectory["loss"][-1] < 1e-9)
    (array([ 0, 25, 50]), True)
    """
    if not isinstance(descent, Descent):
        raise TypeError(
            f"the step rule must be a Descent, got {type(descent).__name__}; rules that rescale each entry, such "
            "as Adam, have no closed form here and no exact reduction: train with lowdyn.train"
        )
    steps = checked_count("steps", steps)
    every = checked_count("every", every, at_least=1)
    tol = None if tol is None else checked_number("tol", tol, at_least=0.0)
    parts = _parts(network, problem)
    run = _loop(network, parts, descent)
    start = [weight.clone() for weight in parts[0].weights]
    looks = [probe.begin(network) for probe in _probes(record)]
    coords = coordinates(looks)
    runs = len(start[0]) if start[0].ndim == 3 else None
    if runs is not None:
        coords["run"] = np.arange(runs)
    if isinstance(descent.lr, tuple) and len(descent.lr) != runs:
        raise ValueError(f"lr holds {len(descent.lr)} rates, the network {runs or 'no dimension of'} runs")
    recorder = Recorder(coords)
    attrs = _attributes(network, problem, descent, steps=steps, every=every, tol=tol)

    with _threads(1 if run.multiply_adds < SMALL else torch.get_num_threads()):
        step = 0
        while True:
            loss = run.loss(last=step == steps)
            if not bool(torch.isfinite(loss).all()):
                stable = _stable_rate(parts[0].problem, start, descent)
                which = None if runs is None else np.flatnonzero(~np.isfinite(run.spread(loss, ended=0.0))).tolist()
                message = _divergence(which, step, descent, stable, linear=not any(network.rectified))
                raise DivergenceError(message, recorder.dataset(attrs))
            if step % every == 0 or step == steps:
                run.write_back()
                values: dict[str, Any] = {"loss": ((), loss.item()) if runs is None else (("run",), run.spread(loss))}
                recorder.add(step, {**values, **observations(looks, step)})
                below = loss < tol if tol is not None else torch.zeros_like(loss, dtype=torch.bool)
                if bool(below.all()):
                    break
                if bool(below.any()):
                    run.keep(~below)
            if step == steps:
                break
            stop = min(steps, step + every - step % every, step + run.check_every - step % run.check_every)
            run.advance([run.rate(descent.rate(one)) for one in range(step, stop)])
            step = stop
    return recorder.dataset(attrs)


def _parts(network: Network, problem: Problem) -> list[Part]:
    """Return what of ``network`` evolves by itself: all of it, or what a reduced network says."""
    if hasattr(network, "parts"):
        return network.parts(problem)
    fitted = _checked_problem(network, problem)
    return [Part(network.weights, fitted, rectified=network.rectified)]


def _loop(network: Network, parts: Sequence[Part], descent: Descent) -> Loop:
    """Return the loop that trains ``parts``: compiled for reduced networks and narrow completions on a CPU."""
    if isinstance(descent, ScaledDescent):
        if len(parts) > 1 or len(parts[0].weights) != 2 or any(parts[0].rectified):
            what = f"{type(network).__name__} of {len(parts[0].weights)} factors"
            raise ValueError(
                f"ScaledDescent is a rule for two factors W_2 W_1 without ReLU, got a {what}; take Descent"
            )
        return SplitLoop(parts[0], descent)
    if len(parts) == 1 and splits(parts[0]):
        return SplitLoop(parts[0], descent)
    if getattr(network, "compiled", False) and parts[0].weights[0].device.type == "cpu":
        from lowdyn.dynamics.compiled import CompiledLoop

        return CompiledLoop(parts, descent)
    return ChainLoop(parts, descent)


def _checked_problem(network: Network, problem: Problem) -> Problem:
    """Return ``problem`` in the network's dtype and device, condensed for a linear network; errors if unfit."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem must be a Factorization, Regression, Completion or Sensing, got {type(problem).__name__}"
        )
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


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with ``count`` threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probes(record: Probe | Sequence[Probe] | None) -> Sequence[Probe]:
    if record is None:
        return ()
    return record if isinstance(record, Sequence) else (record,)


def _stable_rate(problem: Problem, start: list[Tensor], descent: Descent) -> float:
    """The largest stable rate under this rule; decay adds to the curvature, the largest factor rate divides."""
    rule = {
        "momentum": descent.momentum,
        "nesterov": descent.nesterov,
        "scaled": isinstance(descent, ScaledDescent),
    }
    stable = stable_lr(problem, len(start), weights=start, **rule)  # type: ignore[arg-type]
    return 1 / (1 / stable + descent.weight_decay / 2) / max(descent.rates_of_factors(len(start)))


def _divergence(runs: list[int] | None, step: int, descent: Descent, stable: float, *, linear: bool) -> str:
    where = "" if runs is None else f" in runs {runs}"
    whose = "here" if linear else "for the linear network of this depth"
    return (
        f"descent diverged{where}: the loss is not finite at step {step} with lr {_rate_text(descent, step)}; "
        f"the largest stable rate {whose} is about {stable:.3g}; lower lr below it"
    )


def _rate_text(descent: Descent, step: int) -> str:
    rate = descent.rate(max(step - 1, 0))
    return f"{rate:g}" if isinstance(rate, float) else f"up to {max(rate):g}"


def _attributes(network: Network, problem: Problem, descent: Descent, **call: Any) -> dict[str, Any]:
    weights = network.weights
    rule = {
        name: getattr(value, "__qualname__", type(value).__name__) if callable(value) else value
        for name, value in asdict(descent).items()
    }
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
