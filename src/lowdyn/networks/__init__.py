"""Networks: products of matrices, and the classifiers they are compared with."""

from lowdyn.networks.classifiers import MLP, hybrid
from lowdyn.networks.linear import DeepLinearNetwork, normal, orthogonal, uniform
from lowdyn.networks.vit import SmallViT

__all__ = ["MLP", "DeepLinearNetwork", "SmallViT", "hybrid", "normal", "orthogonal", "uniform"]
