"""Descent with every rate taken from the data, and when it ends: on a validation share, on a schedule, or at rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from lowdyn.recovery.objective import Factors, Objective, Penalty
from lowdyn.recovery.observations import Observations, Values

DELAY = 5  # momentum is t / (t + DELAY) after t steps: a memory that grows with the run and does not overshoot early
GROWTH = 1.01  # an objective above so much of its lowest value means that the step was too large
RECOVERY = 1.05  # of the step, after each that went well
PATIENCE = 10  # iterations that may pass without a gain in the validation error
GAIN = 1e-3  # relative; in PATIENCE iterations, less is none

OnIteration = Callable[[int, float], None]  # iterations done; error on held-out entries, NaN where none are


def unwatched(iteration: int, error: float) -> None:
    """Look at nothing."""


def in_units(scale: float, on_iteration: OnIteration) -> OnIteration:
    """Return ``on_iteration`` given errors ``scale`` times as large."""
    return lambda iteration, error: on_iteration(iteration, scale * error)


@dataclass
class Fit:
    """What a run of descent came to. ``schedule`` holds the regularization of every iteration that led to it."""

    factors: Factors
    schedule: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    settled: bool = True
    biases_suffice: bool = False


class _Descent:
    """Nesterov steps; one that makes the objective grow is taken back, and the next ones are half as long."""

    def __init__(self, objective: Objective, factors: Factors) -> None:
        self.objective = objective
        self.step = 1.0
        self.restart(factors)

    def restart(self, factors: Factors) -> None:
        """Go on from ``factors``, at rest."""
        self.arrays, self.lowest, self.last = factors.arrays(), np.inf, np.inf
        self.safe = self.arrays
        self._stand_still()

    def _stand_still(self) -> None:
        self.velocity: list[Values] = [np.zeros_like(one) for one in self.arrays]
        self.age = 0

    @property
    def factors(self) -> Factors:
        """The present factors."""
        return Factors.of(self.arrays)

    def advance(self, penalty: Penalty) -> float:
        """Make one step; return the objective where its gradient was taken."""
        momentum = self.age / (self.age + DELAY)
        ahead = [one + momentum * v for one, v in zip(self.arrays, self.velocity, strict=True)]
        with np.errstate(over="ignore", invalid="ignore"):  # a step too large is seen by the objective it reaches
            loss, gradients, rates = self.objective.gradient(Factors.of(ahead), penalty)
        if not loss <= GROWTH * self.lowest:
            self.step /= 2
            self.arrays, self.last = self.safe, np.inf
            self._stand_still()
            return self.lowest
        if loss > self.last:  # uphill: the momentum is spent (O'Donoghue and Candès 2015)
            self.age = 0
        self.last, self.age = loss, self.age + 1
        self.step = min(1.0, RECOVERY * self.step)
        if loss < self.lowest:
            self.lowest, self.safe = loss, self.arrays
        there: list[Values] = [one - self.step * r * g for one, r, g in zip(ahead, rates, gradients, strict=True)]
        self.velocity = [one - before for one, before in zip(there, self.arrays, strict=True)]
        self.arrays = there
        return loss


def fit_by_validation(
    objective: Objective,
    factors: Factors,
    held_out: Observations,
    regularization: float,
    penalty: Callable[[float], Penalty],
    tol: float,
    max_iter: int,
    on_iteration: OnIteration = unwatched,
) -> Fit:
    """Descend until the error on ``held_out`` falls no longer; then with half the regularization, while that helps.

    ``penalty`` is a function of the regularization. An error of ``tol``, relative to the entries, is as good as none.
    The fit returned is the best on the held-out entries, or the biases alone where that is better than these by less
    than one standard error of the difference.
    """
    rows, columns = held_out.rows, held_out.columns

    def squares(at: Factors) -> Values:
        return (at.at(rows, columns) - held_out.values).astype(np.float64) ** 2

    def error(at: Factors) -> float:
        return float(np.sqrt(held_out.mean(squares(at))))

    run, fit = _Descent(objective, factors), Fit(factors, errors=[error(factors)], settled=False)
    lowest, schedule, level = fit.errors[0], list[float](), [fit.errors[0]]
    at_level = np.inf  # the lowest error when regularization was halved last
    nothing = tol * float(np.sqrt(held_out.mean(held_out.values**2)))
    while len(fit.losses) < max_iter:
        fit.losses.append(run.advance(penalty(regularization)))
        schedule.append(regularization)
        fit.errors.append(error(run.factors))
        on_iteration(len(fit.losses), fit.errors[-1])
        if fit.errors[-1] < lowest:
            lowest, fit.factors, fit.schedule = fit.errors[-1], run.factors, list(schedule)
        level.append(lowest)
        if lowest <= nothing:
            fit.settled = True
            break
        if len(level) > PATIENCE and lowest > (1 - GAIN) * level[-1 - PATIENCE]:
            if regularization == 0.0 or lowest > (1 - GAIN) * at_level:
                fit.settled = True
                break
            at_level, regularization, level = lowest, regularization / 2, [lowest]
            schedule = list(fit.schedule)
            run.restart(fit.factors)
    gains = squares(factors.without_product()) - squares(fit.factors)
    gain = held_out.mean(gains)
    # Entries are drawn, observations are not: one of weight two has one error, which counts twice.
    if gain <= np.sqrt(np.square(held_out.weighed(gains - gain)).sum()) / held_out.count:
        fit.factors, fit.schedule, fit.biases_suffice = factors.without_product(), [], True
    return fit


def fit_on_schedule(
    objective: Objective, factors: Factors, penalties: Iterable[Penalty], on_iteration: OnIteration = unwatched
) -> Fit:
    """Make one step for each of ``penalties``."""
    run, fit = _Descent(objective, factors), Fit(factors)
    for penalty in penalties:
        fit.losses.append(run.advance(penalty))
        on_iteration(len(fit.losses), np.nan)
    fit.factors = run.factors
    return fit


def fit_to_rest(
    objective: Objective,
    factors: Factors,
    penalty: Penalty,
    tol: float,
    max_iter: int,
    on_iteration: OnIteration = unwatched,
) -> Fit:
    """Descend at one penalty until the objective falls by less than ``tol``, relatively, in one iteration."""
    run, fit = _Descent(objective, factors), Fit(factors, settled=False)
    for _ in range(max_iter):
        before = run.lowest
        fit.losses.append(run.advance(penalty))
        on_iteration(len(fit.losses), np.nan)
        if run.lowest <= before < np.inf and before - run.lowest <= tol * before and fit.losses[-1] <= before:
            fit.settled = True
            break
    fit.factors = run.factors
    return fit
