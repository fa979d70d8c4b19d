"""Real images with labels and pairs of sentences, checked: digits, mnist, fashion_mnist, cifar10; sts_benchmark."""

from lowdyn.data.checks import DataError, DataMissing
from lowdyn.data.images import ImageSet
from lowdyn.data.sentences import SentencePairs, load_sentence_pairs
from lowdyn.data.sets import DataSet, load_set, set_available
from lowdyn.data.sources import IMAGE_SETS, available, load_images

__all__ = [
    "IMAGE_SETS",
    "DataError",
    "DataMissing",
    "DataSet",
    "ImageSet",
    "SentencePairs",
    "available",
    "load_images",
    "load_sentence_pairs",
    "load_set",
    "set_available",
]
