"""Observation: spectra of weights, features layer by layer, and the tracker that records them."""

from lowdyn.observe.blocks import BlockStructure
from lowdyn.observe.bounds import layerwise_bounds
from lowdyn.observe.callbacks import trainer_callback
from lowdyn.observe.depth import geometric_rate
from lowdyn.observe.features import layer_features
from lowdyn.observe.matrices import weight_matrices
from lowdyn.observe.metrics import LayerMetrics, class_measures, layer_metrics, layer_moments
from lowdyn.observe.moments import ClassMoments
from lowdyn.observe.schedule import LogSpaced
from lowdyn.observe.spectra import Spectra
from lowdyn.observe.subspaces import ActiveSubspace, active_subspace, outside_share
from lowdyn.observe.summary import summarize
from lowdyn.observe.tracker import Tracker

__all__ = [
    "ActiveSubspace",
    "BlockStructure",
    "ClassMoments",
    "LayerMetrics",
    "LogSpaced",
    "Spectra",
    "Tracker",
    "active_subspace",
    "class_measures",
    "geometric_rate",
    "layer_features",
    "layer_metrics",
    "layer_moments",
    "layerwise_bounds",
    "outside_share",
    "summarize",
    "trainer_callback",
    "weight_matrices",
]
