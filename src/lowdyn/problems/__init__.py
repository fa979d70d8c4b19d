"""Problems: what is minimised, with its gradient in the end-to-end matrix and its exact answer where known."""

from lowdyn.problems.completion import Completion
from lowdyn.problems.factorization import FactoredTarget, Factorization, low_rank_target
from lowdyn.problems.least_squares import LeastSquares
from lowdyn.problems.problem import Problem
from lowdyn.problems.regression import Regression

__all__ = ["Completion", "FactoredTarget", "Factorization", "LeastSquares", "Problem", "Regression", "low_rank_target"]
