"""Recovery: matrices from compressed factors, all or some of their entries seen."""

from lowdyn.recovery.factors import compress_network, compressed_factors, gradient_start, spectral_start

__all__ = ["compress_network", "compressed_factors", "gradient_start", "spectral_start"]
