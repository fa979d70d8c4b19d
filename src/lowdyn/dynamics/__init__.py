"""Dynamics: full-batch descent, its exact reduction, and what theory predicts of it."""

from lowdyn.dynamics.descent import DivergenceError, gradient_descent
from lowdyn.dynamics.prediction import stable_lr
from lowdyn.dynamics.reduction import Frames, inert_scales, invariant_frames
from lowdyn.dynamics.rule import Descent

__all__ = ["Descent", "DivergenceError", "Frames", "gradient_descent", "inert_scales", "invariant_frames", "stable_lr"]
