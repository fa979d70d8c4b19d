"""Networks: products of matrices, and the classifiers they are compared with."""

from lowdyn.networks.classifiers import MLP, hybrid
from lowdyn.networks.linear import DeepLinearNetwork, narrowest_split, normal, orthogonal, product_of, uniform

__all__ = ["MLP", "DeepLinearNetwork", "hybrid", "narrowest_split", "normal", "orthogonal", "product_of", "uniform"]
