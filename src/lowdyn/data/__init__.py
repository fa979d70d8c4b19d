"""Real images with labels, ratings and pairs of sentences, checked.

digits, mnist, fashion_mnist, cifar10, cifar100, usps; movielens_100k; sts_benchmark; weights: vit_b_16.
"""

from lowdyn.data.checks import DataError, DataMissing
from lowdyn.data.images import ImageSet
from lowdyn.data.pretrained import PretrainedViT
from lowdyn.data.ratings import RATING_SETS, RatingSet, load_ratings, ratings_available
from lowdyn.data.sentences import SentencePairs, load_sentence_pairs
from lowdyn.data.sets import DataSet, downloadable, load_set, set_available
from lowdyn.data.sources import IMAGE_SETS, available, load_images

__all__ = [
    "IMAGE_SETS",
    "RATING_SETS",
    "DataError",
    "DataMissing",
    "DataSet",
    "ImageSet",
    "PretrainedViT",
    "RatingSet",
    "SentencePairs",
    "available",
    "downloadable",
    "load_images",
    "load_ratings",
    "load_sentence_pairs",
    "load_set",
    "ratings_available",
    "set_available",
]
