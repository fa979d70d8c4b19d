"""Dynamics: full-batch descent, its exact reduction, and what theory predicts of it."""

from lowdyn.dynamics.descent import DivergenceError, gradient_descent
from lowdyn.dynamics.frames import Family, Frames, invariant_frames
from lowdyn.dynamics.prediction import SaxeSolution, escape_steps, saxe_solution, stable_lr
from lowdyn.dynamics.reduction import ReducedNetwork, reduce_network
from lowdyn.dynamics.rule import Descent, ScaledDescent
from lowdyn.dynamics.sampling import SampledNetwork, sample_reduced_network
from lowdyn.dynamics.small import SmallNetwork, inert_scales

__all__ = [
    "Descent",
    "DivergenceError",
    "Family",
    "Frames",
    "ReducedNetwork",
    "SampledNetwork",
    "SaxeSolution",
    "ScaledDescent",
    "SmallNetwork",
    "escape_steps",
    "gradient_descent",
    "inert_scales",
    "invariant_frames",
    "reduce_network",
    "sample_reduced_network",
    "saxe_solution",
    "stable_lr",
]
