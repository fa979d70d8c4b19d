"""Networks: products of matrices, and the classifiers they are compared with."""

from lowdyn.networks.classifiers import MLP, hybrid
from lowdyn.networks.linear import DeepLinearNetwork, normal, orthogonal, uniform

__all__ = ["MLP", "DeepLinearNetwork", "hybrid", "normal", "orthogonal", "uniform"]
