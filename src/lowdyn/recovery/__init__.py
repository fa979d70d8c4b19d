"""Recovering a matrix from some of its entries."""

from lowdyn.recovery.completion import DeepMatrixCompletion
from lowdyn.recovery.ratings import ratings_matrix

__all__ = ["DeepMatrixCompletion", "ratings_matrix"]
