"""What a claim is: a module that reads experiments, gives checks and draws a picture."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import xarray as xr

from lowdyn.experiments.experiment import Experiment

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Datasets = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class Check:
    """One number held against what it should be; ``holds`` is None where it is shown and not judged."""

    text: str
    measured: float | str
    expected: float | str
    tolerance: float | None
    holds: bool | None

    def as_json(self) -> dict[str, Any]:
        """Return the check as plain JSON values."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def sentence(self) -> str:
        """Return the check in words: what was measured, and what was expected.

        >>> Check("largest residual", 2e-9, "≤ 1e-10", 1e-10, False).sentence()
        'largest residual: 2e-09, expected ≤ 1e-10'
        """
        measured = self.measured if isinstance(self.measured, str) else f"{self.measured:.4g}"
        return f"{self.text}: {measured}, expected {self.expected}"


class Claim(Protocol):
    """A module ``cNN_name.py`` in this package."""

    ID: str  # "C4"
    PART: str  # "see", "predict" or "use"
    TITLE: str  # a few words
    CLAIM: str  # the claim in one sentence, with its equation
    SOURCE: str  # lecture and paper
    PUBLISHED: str  # what they published, in numbers
    DEVIATION: str  # how the settings here depart from the published ones
    DIFFERENCE: str  # which numbers shown differ from the published ones and why, or that this is not known; "": none
    SCALE_NOTE: str  # why the verdict at a smaller scale may differ from that at paper scale; "" where not known
    EXPERIMENTS: tuple[Experiment, ...]  # and, of them, TIMED where the claim speaks of seconds: see `timed`
    __name__: str

    def check(self, datasets: Datasets) -> list[Check]:
        """Hold what was measured against the claim."""
        ...

    def draw(self, datasets: Datasets) -> Figure:
        """Draw the picture; no computation beyond selection."""
        ...


def timed(claim: Claim) -> tuple[Experiment, ...]:
    """Return the experiments in which the claim reads a clock: its ``TIMED``, none by default.

    They are never run beside others, which would slow them.

    >>> [experiment.name for experiment in timed(all_claims()["C12"])]
    ['cost']
    """
    experiments: tuple[Experiment, ...] = getattr(claim, "TIMED", ())
    return experiments


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as Python's own, and what JSON has no number for as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def all_claims() -> dict[str, Claim]:
    """Return every claim by its id, in the order of the lecture."""
    package = import_module("lowdyn.claims")
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name[1:3].isdigit())
    modules = [cast(Claim, import_module(f"lowdyn.claims.{name}")) for name in names]
    return {module.ID: module for module in modules}


def at_most(text: str, measured: Any, limit: float, *, tolerance: float | None = None) -> Check:
    """Check that ``measured`` does not exceed ``limit`` by more than ``tolerance``.

    ``measured``: a number, an array, or a list of arrays of any shapes, judged by its worst value, here the largest;
    where one value is NaN the worst is, and fails.

    >>> at_most("correlation", [-0.99, -0.97], -0.9).measured
    -0.97
    >>> at_most("correlation", [-0.99, float("nan")], -0.9).holds
    False
    """
    worst = float(_values(measured).max())
    return Check(text, worst, f"≤ {limit:g}", tolerance, worst <= limit + (tolerance or 0.0))


def at_least(text: str, measured: Any, limit: float) -> Check:
    """Check that ``measured``, one or several as in :func:`at_most`, reaches ``limit``; NaN fails."""
    worst = float(_values(measured).min())
    return Check(text, worst, f"≥ {limit:g}", None, worst >= limit)


def below(text: str, measured: Any, limit: float) -> Check:
    """Check that ``measured``, one or several as in :func:`at_most`, is less than ``limit``; NaN fails.

    >>> below("D_{l+1}/D_l", [0.5, 1.0], 1.0).sentence()
    'D_{l+1}/D_l: 1, expected < 1'
    """
    worst = float(_values(measured).max())
    return Check(text, worst, f"< {limit:.4g}", None, worst < limit)


def above(text: str, measured: Any, limit: float) -> Check:
    """Check that ``measured``, one or several as in :func:`at_most`, is more than ``limit``; NaN fails."""
    worst = float(_values(measured).min())
    return Check(text, worst, f"> {limit:.4g}", None, worst > limit)


def near(text: str, measured: Any, expected: float, tolerance: float) -> Check:
    """Check that ``measured``, one or several as in :func:`at_most`, is within ``tolerance`` of ``expected``.

    >>> near("exponent", np.array([1.99, 2.04]), 2.0, 0.05).measured
    2.04
    """
    values = _values(measured)
    worst = float(values[np.argmax(abs(values - expected))])  # the first NaN, if there is one
    return Check(text, worst, float(expected), tolerance, abs(worst - expected) <= tolerance)


def _values(measured: Any) -> np.ndarray:
    """Return all values in one row: numpy's largest and smallest are NaN where one is, unlike xarray's or Python's."""
    parts = measured if isinstance(measured, list) else [measured]
    return np.concatenate([np.asarray(part, dtype=float).ravel() for part in parts])


def shown(text: str, measured: float | str, published: float | str) -> Check:
    """Show a number beside the published one without judging it."""
    return Check(text, measured if isinstance(measured, str) else float(measured), published, None, None)


def numbers_text(values: Iterable[float]) -> str:
    """Write numbers for a table: four digits, separated by commas.

    >>> numbers_text([0.13712, 0.0351])
    '0.1371, 0.0351'
    """
    return ", ".join(f"{value:.4g}" for value in values)


def verdict(checks: Sequence[Check]) -> bool:
    """Return whether every judged check holds; a claim with nothing judged does not hold."""
    judged = [check.holds for check in checks if check.holds is not None]
    return bool(judged) and all(judged)
