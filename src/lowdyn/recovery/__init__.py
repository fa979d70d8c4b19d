"""Recovering a matrix from some of its entries."""

from lowdyn.recovery.completion import DeepMatrixCompletion

__all__ = ["DeepMatrixCompletion"]
