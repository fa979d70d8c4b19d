"""Real images with labels, as checked arrays: digits, mnist, fashion_mnist, cifar10."""

from lowdyn.data.checks import DataError, DataMissing
from lowdyn.data.images import ImageSet
from lowdyn.data.sources import IMAGE_SETS, available, load_images

__all__ = ["IMAGE_SETS", "DataError", "DataMissing", "ImageSet", "available", "load_images"]
