"""The course of a fit: a trial with entries held out, then all entries the way it went; or all of them, to rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from lowdyn.recovery.fitting import Fit, OnIteration, fit_by_validation, fit_on_schedule, fit_to_rest, in_units
from lowdyn.recovery.objective import Factors, Penalty
from lowdyn.recovery.observations import Observations, Values
from lowdyn.recovery.start import Start

Mask = NDArray[np.bool_]
Starting = Callable[[Observations], Start]


class Ending(NamedTuple):
    """When a descent ends, and who is told of its iterations."""

    tol: float
    max_iter: int
    on_iteration: OnIteration


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a fit came to, in the units of the matrix.

    ``losses`` are per observation, of the final descent, which ended with ``regularization``; ``errors`` those of
    the trial on the entries held out, none without a trial. ``settled`` says that ``max_iter`` cut no descent short.
    """

    factors: Factors
    mean: float
    penalty: Penalty
    regularization: float
    losses: Values
    errors: Values
    settled: bool


def fit_with_trial(
    seen: Observations,
    share: float,
    starting: Starting,
    regularization: float,
    ending: Ending,
    random_state: RandomState,
) -> Outcome:
    """Find iterations and regularization by the error on a ``share`` held out, then fit all of ``seen`` that way.

    The search begins at ``regularization``. ``starting`` gives the start of either fit. With too few entries to hold
    two of them out, and to keep two, there is no trial.
    """
    held_out = _held_out(len(seen), share, random_state)
    if held_out is None:
        return fit_without_trial(starting(seen), regularization, ending)
    trial = _try(seen, held_out, starting, regularization, ending)
    start = starting(seen)
    factors = start.factors.without_product() if trial.biases_suffice else start.factors
    penalties = [start.penalty(one) for one in trial.schedule]
    final = fit_on_schedule(start.objective, factors, penalties, ending.on_iteration)
    final.errors, final.settled = trial.errors, trial.settled
    return _outcome(start, final, trial.schedule[-1] if trial.schedule else regularization)


def fit_without_trial(start: Start, regularization: float, ending: Ending) -> Outcome:
    """Fit what ``start`` is of at one regularization, to rest."""
    final = fit_to_rest(start.objective, start.factors, start.penalty(regularization), *ending)
    return _outcome(start, final, regularization)


def _held_out(entries: int, share: float, random_state: RandomState) -> Mask | None:
    """Draw which entries are held out (entries,); None where there are too few."""
    count = int(share * entries)
    if count < 2 or entries - count < 2:
        return None
    chosen = np.zeros(entries, bool)
    chosen[random_state.choice(entries, count, replace=False)] = True
    return chosen


def _outcome(start: Start, fit: Fit, regularization: float) -> Outcome:
    """Return a fit at unit scale in the units of the matrix; its errors have them already."""
    decay, ridge = start.penalty(regularization)
    return Outcome(
        fit.factors.scaled(start.scale),
        start.mean,
        # In the units that scaled() gives a factor, and the objective, λ is another number.
        Penalty(decay * start.scale ** (2 - 2 / start.depth), ridge),
        regularization,
        np.array(fit.losses) * (start.scale**2 / start.objective.count),
        np.array(fit.errors),
        fit.settled,
    )


def _try(seen: Observations, held_out: Mask, starting: Starting, regularization: float, ending: Ending) -> Fit:
    """Return the fit to the entries that are not held out, its errors in the units of the matrix."""
    start = starting(seen.select(~held_out))
    fit = fit_by_validation(
        start.objective,
        start.factors,
        start.apply(seen.select(held_out)),
        regularization,
        start.penalty,
        ending.tol,
        ending.max_iter,
        in_units(start.scale, ending.on_iteration),
    )
    fit.errors = [start.scale * error for error in fit.errors]
    return fit
