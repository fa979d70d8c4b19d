"""Observation: spectra of weights, features layer by layer, and the tracker that records them."""

from lowdyn.observe.blocks import BlockStructure
from lowdyn.observe.metrics import LayerMetrics, layer_metrics
from lowdyn.observe.moments import ClassMoments
from lowdyn.observe.spectra import Spectra
from lowdyn.observe.tracker import Tracker

__all__ = ["BlockStructure", "ClassMoments", "LayerMetrics", "Spectra", "Tracker", "layer_metrics"]
