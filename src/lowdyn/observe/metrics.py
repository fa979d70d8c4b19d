"""Layerwise features of a classifier: how compressed its classes are, how far apart, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.arguments import checked_count, checked_number
from lowdyn.linalg import numerical_rank
from lowdyn.observe.collapse import centred_means, class_weights, find_classifier
from lowdyn.observe.features import Batches, Pool
from lowdyn.observe.linear_probe import LinearProbe
from lowdyn.observe.moments import ClassMoments, TotalMoments
from lowdyn.observe.passes import Passes
from lowdyn.trajectory import Record


def layer_metrics(
    model: nn.Module,
    loader: Batches,
    num_classes: int = 10,
    layers: str | None = None,
    *,
    balanced: bool = True,
    pool: Pool = "flatten",
    collapse: bool = False,
    rank_tolerance: float | None = None,
    probe: Batches | None = None,
    distributed: bool = False,
) -> xr.Dataset:
    """Measure, in one pass over ``loader``, how compressed and how separated the classes are in every layer.

    ``loader`` is any iterable of (inputs, labels), samples first. The coordinate ``layer`` is "input", then
    the leaf modules with weights in the order in which the forward pass calls them; ``layers`` is a pattern
    that chooses among all modules by name instead, activations included. What a functional activation made is the
    output of the module around it: name that one. A module called twice appears as ``name`` and ``name#2``.

    ``pool`` makes features (samples, width) of an output; the input is always flattened. "flatten": all its numbers.
    "mean": over the tokens of (samples, tokens, width), over the positions of (samples, channels, height, width).
    "cls": the first token of (samples, tokens, width), other shapes are flattened. Or a function of the output.

    Variables over ``layer``, with Σ_W and Σ_B the covariances within and between classes (theory §4):

    - ``within_between_ratio`` D_l = tr Σ_W / tr Σ_B, small = compressed (``within``, ``between`` are its parts)
    - ``class_separation`` S_l = 1 − max_{k≠k'} |cos(μ_k, μ_k')| of *centred* class means μ_k; ceiling 1 − 1/(K−1)
    - ``class_discrimination`` 1 − max_{k≠k'} cos of the class means as they are (Wang et al. 2023); ceiling 1

    They take O(num_classes · width) numbers a layer, accumulated in float64. What costs more comes when asked for:

    - ``collapse``: neural collapse (Papyan et al. 2020; Zhu et al. 2021, arXiv 2105.02375), all 0 when complete.
      ``nc1`` tr(Σ_W Σ_B^†)/K; ``nc2`` distance of the centred means' Gram matrix, of norm 1, from a simplex frame's;
      ``nc3`` ‖W/‖W‖_F − M/‖M‖_F‖_F of classifier and centred means, at the classifier's input, a further layer
      "<name>.input" (the classifier is the last module with a weight (num_classes, width); NaN elsewhere); ``nc4``
      share of samples whose nearest class mean is not the model's answer. A second pass over the same samples.
    - ``rank_tolerance``: ``numerical_rank`` of the feature matrix (samples, width) as it is, its singular values above
      the tolerance times the largest (at least 1e-6: from a float64 Gram matrix, O(width²) numbers)
    - ``probe``: batches on which a linear classifier fitted on ``loader``'s features, ridge regression in closed form
      (:class:`~lowdyn.observe.linear_probe.LinearProbe`), is scored: ``probe_accuracy``; O(width²) numbers

    Rank and probe are NaN for features wider than 16 384.

    With ``balanced`` every class weighs the same in Σ_W, Σ_B and the global mean; otherwise by its frequency, as
    samples do. With ``distributed`` every rank of torch.distributed's default group passes its share of the samples
    and gets the metrics of all; what fails on one rank is raised on all. A sharded model (FSDP2) takes all ranks for a
    forward pass, so they agree before each one: batches that are not as many on every rank, or that cannot be fetched,
    are raised on all too. What fails *within* such a pass on one rank, such as inputs of a wrong width, is not: the
    others wait for it until the process group's own timeout. The model is evaluated in eval mode without gradients and
    left as it was found, as are the generators from which the loader draws.

    ValueError for fewer than two classes, labels out of range, a class without samples, features that are not
    finite, a pattern that matches nothing, an empty loader, a second pass that gives other samples.

    >>> x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [6.0, 0.0]])
    >>> metrics = layer_metrics(nn.Linear(2, 2), [(x, torch.tensor([0, 0, 1, 1]))], num_classes=2)
    >>> metrics["layer"].values.tolist(), metrics["within_between_ratio"].values[0].round(4).item()
    (['input', 'self'], 0.1379)
    """
    num_classes = checked_count("num_classes", num_classes, at_least=2)
    if getattr(model, "runs", None) is not None:
        raise ValueError("layer metrics are of one network at a time; take network.run(i)")
    if rank_tolerance is not None:
        checked_number("rank_tolerance", rank_tolerance, at_least=1e-6, below=1.0)
    classifier = find_classifier(model, num_classes) if collapse else None
    passes = Passes(model, num_classes, layers, pool, classifier, distributed)
    moments, totals = passes.moments(loader, totals=rank_tolerance is not None or probe is not None)
    columns = [class_measures(moment, balanced=balanced) for moment in moments.values()]
    if collapse:
        for column, found in zip(columns, passes.collapse(loader, moments, balanced=balanced), strict=True):
            column.update(found)
    if rank_tolerance is not None:
        for column, name in zip(columns, moments, strict=True):
            column["numerical_rank"] = _rank(totals[name], rank_tolerance) if name in totals else np.nan
    if probe is not None:
        accuracy = passes.accuracy(probe, {name: LinearProbe(moments[name], total) for name, total in totals.items()})
        for column, name in zip(columns, moments, strict=True):
            column["probe_accuracy"] = accuracy.get(name, np.nan)
    variables = {name: ("layer", np.array([column[name] for column in columns])) for name in columns[0]}
    attrs = {
        "num_classes": num_classes,
        "samples": int(next(iter(moments.values())).counts.sum()),
        "weighting": "class" if balanced else "frequency",
    }
    return xr.Dataset(variables, coords={"layer": list(moments)}, attrs=attrs)


def layer_moments(
    model: nn.Module, loader: Batches, num_classes: int = 10, layers: str | None = None, *, pool: Pool = "flatten"
) -> dict[str, ClassMoments]:
    """Return, per layer, the accumulators that :func:`layer_metrics` reads its first variables from.

    For shares of the samples seen by several workers: each calls this, ``moments[name].merge(other[name])`` brings
    them together, :func:`class_measures` reads them. Arguments and errors are those of ``layer_metrics``.

    >>> x, labels = torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    >>> first, second = (layer_moments(nn.Linear(1, 1), [(x[part], labels[part])], 2) for part in ([0, 2], [1, 3]))
    >>> first["input"].merge(second["input"])
    >>> class_measures(first["input"])["within_between_ratio"]
    0.16
    """
    passes = Passes(model, checked_count("num_classes", num_classes, at_least=2), layers, pool)
    return passes.moments(loader, totals=False)[0]


def class_measures(moments: ClassMoments, *, balanced: bool = True) -> dict[str, float]:
    """Return what :func:`layer_metrics` reads off class means and scatter; ValueError for a class without samples.

    >>> x, labels = torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    >>> measures = class_measures(layer_moments(nn.Linear(1, 1), [(x, labels)], 2)["input"])
    >>> measures["within"], measures["between"]
    (1.0, 6.25)
    """
    empty = torch.nonzero(moments.counts == 0)[:, 0].tolist()
    if empty:
        held = len(moments.counts)
        raise ValueError(f"no sample of class {empty}: num_classes is {held}; pass data of every class")
    weights = class_weights(moments, balanced=balanced)
    centred = centred_means(moments, weights)
    within = (weights * moments.scatter / moments.counts).sum()
    between = (weights * centred.square().sum(dim=1)).sum()
    return {
        "within_between_ratio": float(within / between),
        "class_separation": float(1 - _largest_cosine(centred, absolute=True)),
        "class_discrimination": float(1 - _largest_cosine(moments.means, absolute=False)),
        "within": float(within),
        "between": float(between),
    }


@dataclass(frozen=True)
class LayerMetrics:
    """Probe: :func:`layer_metrics` of the model at every record, with the same arguments, on a fixed ``loader`` (an
    iterable gone through each time: a list or DataLoader, not a generator).

    >>> from lowdyn import Tracker
    >>> x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [6.0, 0.0]])
    >>> probe = LayerMetrics([(x, torch.tensor([0, 0, 1, 1]))], num_classes=2)
    >>> trajectory = Tracker(nn.Linear(2, 2), probe).trajectory
    >>> trajectory["within_between_ratio"].dims, trajectory["features"].values.tolist()
    (('step', 'features'), ['input', 'self'])
    """

    loader: Batches
    num_classes: int = 10
    layers: str | None = None
    balanced: bool = True
    pool: Pool = "flatten"
    collapse: bool = False
    rank_tolerance: float | None = None
    probe: Batches | None = None
    distributed: bool = False

    def begin(self, model: nn.Module) -> LayerMetricsLook:
        """Start looking at ``model``."""
        return LayerMetricsLook(self, model)


class LayerMetricsLook:
    """Layer metrics of one model."""

    def __init__(self, probe: LayerMetrics, model: nn.Module) -> None:
        self.model, self.arguments = model, {field.name: getattr(probe, field.name) for field in fields(probe)}
        classifier = find_classifier(model, probe.num_classes) if probe.collapse else None
        passes = Passes(model, probe.num_classes, probe.layers, probe.pool, classifier, probe.distributed)
        self.coords = {"features": passes.names(probe.loader)}
        self.collective = probe.distributed  # whether every process must look at the same step

    def __call__(self, step: int) -> Record:
        """Return the record of the present features, over the dimension ``features`` (the layers' names)."""
        metrics = layer_metrics(self.model, **self.arguments)
        return {str(name): (("features",), variable.values) for name, variable in metrics.items()}


def _rank(total: TotalMoments, tolerance: float) -> float:
    squares = torch.linalg.eigvalsh(total.gram).clamp(min=0.0).flip(0)
    return float(numerical_rank(squares.sqrt(), rows=len(squares), columns=len(squares), tolerance=tolerance))


def _largest_cosine(vectors: Tensor, *, absolute: bool) -> Tensor:
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    if absolute:
        cosines = cosines.abs()
    return cosines.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf).max()
