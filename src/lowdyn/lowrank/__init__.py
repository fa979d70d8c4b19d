"""Low-rank training of real networks: factorized layers and the ranks they need."""

from lowdyn.lowrank.factorize import factorize, merge
from lowdyn.lowrank.ranks import advise_ranks

__all__ = ["advise_ranks", "factorize", "merge"]
