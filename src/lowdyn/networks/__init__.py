"""Networks: products of matrices, and the classifiers they are compared with."""

from lowdyn.networks.classifiers import MLP, hybrid
from lowdyn.networks.linear import DeepLinearNetwork, narrowest_split, normal, orthogonal, product_of, uniform
from lowdyn.networks.vit import SmallViT

__all__ = [
    "MLP",
    "DeepLinearNetwork",
    "SmallViT",
    "hybrid",
    "narrowest_split",
    "normal",
    "orthogonal",
    "product_of",
    "uniform",
]
