"""Recovery: matrices from compressed factors, all or some of their entries seen."""

from lowdyn.recovery.completion import DeepMatrixCompletion
from lowdyn.recovery.factors import compress_network, compressed_factors, gradient_start, spectral_start
from lowdyn.recovery.ratings import ratings_matrix

__all__ = [
    "DeepMatrixCompletion",
    "compress_network",
    "compressed_factors",
    "gradient_start",
    "ratings_matrix",
    "spectral_start",
]
