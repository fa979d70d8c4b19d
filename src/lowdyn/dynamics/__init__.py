"""Dynamics: full-batch descent, its exact reduction, and what theory predicts of it."""

from lowdyn.dynamics.descent import Descent, DivergenceError, gradient_descent
from lowdyn.dynamics.prediction import stable_lr

__all__ = ["Descent", "DivergenceError", "gradient_descent", "stable_lr"]
