"""Layerwise features of a classifier: how compressed its classes are, how far apart, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.arguments import checked_count
from lowdyn.observe.matrices import plain_name, select
from lowdyn.observe.moments import ClassMoments
from lowdyn.trajectory import Record

Batches = Iterable[tuple[Any, Any]]
MEASURES = ("within_between_ratio", "class_separation", "class_discrimination", "within", "between")


def layer_metrics(
    model: nn.Module,
    loader: Batches,
    num_classes: int = 10,
    layers: str | None = None,
    *,
    balanced: bool = True,
) -> xr.Dataset:
    """Measure, in one pass over ``loader``, how compressed and how separated the classes are in every layer.

    ``loader`` is any iterable of (inputs, labels), samples first. The coordinate ``layer`` is "input", then
    the leaf modules with weights in the order in which the forward pass calls them; ``layers`` is a pattern
    that chooses among all modules by name instead, activations included. A module called twice appears as
    ``name`` and ``name#2``. Features of more than one dimension are flattened.

    Variables over ``layer``, with Σ_W and Σ_B the covariances within and between classes (theory §4):

    - ``within_between_ratio`` D_l = tr Σ_W / tr Σ_B, small = compressed (``within``, ``between`` are its parts)
    - ``class_separation`` S_l = 1 − max_{k≠k'} |cos(μ_k, μ_k')| of *centred* class means μ_k; ceiling 1 − 1/(K−1)
    - ``class_discrimination`` 1 − max_{k≠k'} cos of the class means as they are (Wang et al. 2023); ceiling 1

    With ``balanced`` every class weighs the same in Σ_W, Σ_B and the global mean; otherwise by its frequency,
    as samples do. The model is evaluated in eval mode without gradients and left as it was found; features
    accumulate in float64, O(num_classes · width) numbers a layer.

    ValueError for fewer than two classes, labels out of range, a class without samples, features that are not
    finite, a pattern that matches nothing, an empty loader.

    >>> x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [6.0, 0.0]])
    >>> metrics = layer_metrics(nn.Linear(2, 2), [(x, torch.tensor([0, 0, 1, 1]))], num_classes=2)
    >>> metrics["layer"].values.tolist(), metrics["within_between_ratio"].values[0].round(4).item()
    (['input', 'self'], 0.1379)
    """
    num_classes = checked_count("num_classes", num_classes, at_least=2)
    if getattr(model, "runs", None) is not None:
        raise ValueError("layer metrics are of one network at a time; take network.run(i)")
    moments: dict[str, ClassMoments] = {}
    for inputs, labels in _batches(loader):
        labels = _checked_labels(labels, num_classes)
        for name, features in layer_features(model, inputs, layers).items():
            if len(features) != len(labels):
                raise ValueError(f"{len(labels)} labels came with {tuple(features.shape)} features of {name!r}")
            if not bool(torch.isfinite(features).all()):
                raise ValueError(f"features of {name!r} hold NaN or infinity")
            if name not in moments:
                moments[name] = ClassMoments(num_classes, features.shape[1], features.device)
            moments[name].update(features, labels.to(features.device))
    if not moments:
        raise ValueError("the loader gave no batch")
    empty = torch.nonzero(next(iter(moments.values())).counts == 0)[:, 0].tolist()
    if empty:
        raise ValueError(f"no sample of class {empty}: num_classes is {num_classes}; pass data of every class")
    rows = [_measures(moment, balanced=balanced) for moment in moments.values()]
    variables = {
        name: ("layer", np.array(column)) for name, column in zip(MEASURES, zip(*rows, strict=True), strict=True)
    }
    counts = next(iter(moments.values())).counts
    attrs = {
        "num_classes": num_classes,
        "samples": int(counts.sum()),
        "weighting": "class" if balanced else "frequency",
    }
    return xr.Dataset(variables, coords={"layer": list(moments)}, attrs=attrs)


@dataclass(frozen=True)
class LayerMetrics:
    """Probe: :func:`layer_metrics` of the model at every record, on a fixed ``loader`` (an iterable gone
    through each time: a list or DataLoader, not a generator)."""

    loader: Batches
    num_classes: int = 10
    layers: str | None = None
    balanced: bool = True

    def begin(self, model: nn.Module) -> LayerMetricsLook:
        """Start looking at ``model``."""
        return LayerMetricsLook(self, model)


class LayerMetricsLook:
    """Layer metrics of one model."""

    def __init__(self, probe: LayerMetrics, model: nn.Module) -> None:
        self.probe, self.model = probe, model
        batch = next(_batches(probe.loader))
        self.coords = {"features": list(layer_features(model, batch[0], probe.layers))}

    def __call__(self, step: int) -> Record:
        """Return the record of the present features, over the dimension ``features`` (the layers' names)."""
        probe = self.probe
        metrics = layer_metrics(self.model, probe.loader, probe.num_classes, probe.layers, balanced=probe.balanced)
        return {str(name): (("features",), variable.values) for name, variable in metrics.items()}


def _measures(moments: ClassMoments, *, balanced: bool) -> tuple[float, ...]:
    counts, means = moments.counts, moments.means
    weights = torch.full_like(counts, 1 / len(counts)) if balanced else counts / counts.sum()
    within = (weights * moments.scatter / counts).sum()
    # Around the first mean, so that a common offset does not enter the global mean's rounding.
    relative = means - means[0]
    centred = relative - weights @ relative
    between = (weights * centred.square().sum(dim=1)).sum()
    separation = 1 - _largest_cosine(centred, absolute=True)
    discrimination = 1 - _largest_cosine(means, absolute=False)
    ratio = within / between
    return tuple(float(value) for value in (ratio, separation, discrimination, within, between))


def _largest_cosine(vectors: Tensor, *, absolute: bool) -> Tensor:
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    if absolute:
        cosines = cosines.abs()
    return cosines.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf).max()


def _batches(loader: Batches) -> Iterator[tuple[Any, Any]]:
    """Go through the loader; a DataLoader draws a seed from torch's global generator, which gets its state back."""
    if not isinstance(loader, torch.utils.data.DataLoader):
        yield from loader
        return
    state = torch.get_rng_state()
    batches = iter(loader)
    torch.set_rng_state(state)
    yield from batches


def _checked_labels(labels: Any, num_classes: int) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be whole numbers (samples,), got {labels.dtype} {tuple(labels.shape)}")
    labels = labels.to(torch.int64)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"labels must lie in 0 … {num_classes - 1} (num_classes={num_classes}), "
            f"got {int(labels.min())} … {int(labels.max())}"
        )
    return labels


def layer_features(model: nn.Module, inputs: Any, layers: str | None = None) -> dict[str, Tensor]:
    """Run ``model`` on ``inputs`` and return "input" and the chosen outputs, flattened, in the order of the calls.

    ``layers`` chooses as in :func:`layer_metrics`; each is a float64 copy (samples, width).

    >>> list(layer_features(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2), "1"))
    ['input', '1']
    """
    parameter = next(model.parameters(), None)
    inputs = torch.as_tensor(inputs)
    if parameter is not None:
        # A floating input follows the model's dtype; token ids stay whole numbers.
        inputs = inputs.to(parameter.device, parameter.dtype if inputs.is_floating_point() else None)
    seen = {"input": _copy(inputs)}

    def keep(name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple | list) else output
        calls = 1 + sum(key == name or key.startswith(f"{name}#") for key in seen)
        seen[name if calls == 1 else f"{name}#{calls}"] = _copy(output)

    with _hooks(model, layers, keep), _evaluation(model), torch.no_grad():
        model(inputs.clone())  # layers may work in place
    return seen


def _copy(features: Tensor) -> Tensor:
    """The accumulators' float64 at once: a layer that works in place would write into what is kept."""
    return features.detach().flatten(start_dim=1).to(torch.float64, copy=True)


@contextmanager
def _hooks(model: nn.Module, layers: str | None, keep: Any) -> Iterator[None]:
    modules = {plain_name(name) or "self": module for name, module in model.named_modules()}
    if layers is None:
        names = [
            name
            for name, module in modules.items()
            if next(module.children(), None) is None and getattr(module, "weight", None) is not None
        ]
    else:
        names = list(modules)
    handles = [
        modules[name].register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name in select(names, layers, "layer")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
