"""What the weights of a model on disk look like, layer by layer, and what training added to them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.arguments import checked_number
from lowdyn.linalg import rank_of_energy
from lowdyn.observe.matrices import plain_name
from lowdyn.observe.reading import PACKED_BY_HEAD, Reading, of_name
from lowdyn.observe.summary import summarize
from lowdyn.tensor_files import read_config
from lowdyn.weight_files import WeightFiles, open_weights


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The spectrum of one matrix (out, in).

    ``values`` (min(out, in),) are its singular values, descending; ``norm`` is ‖·‖_F, so that its square is the
    energy; ``rank`` counts the values above rounding, ``stable_rank`` is ‖·‖_F²/σ_1², ``effective_rank`` the
    exponential of the entropy of σ_i/Σσ_j. ``advised_rank`` is the smallest rank that holds the asked share of the
    energy, but never more than ``rank``: what is beyond is rounding. ``held`` is the share that it holds.
    """

    values: np.ndarray[Any, Any]
    norm: float
    rank: int
    stable_rank: float
    effective_rank: float
    advised_rank: int
    held: float


@dataclass(frozen=True, eq=False)
class Layer:
    """One matrix of a model: ``stored`` is the shape in the file, ``shape`` that of the matrix made of it.

    ``reading`` says how, such as ``out x in·3·3``; queries, keys and values that are stored as one are three layers.

    ``update`` is the spectrum of W − W_0 and ``change`` = ‖W − W_0‖_F / ‖W_0‖_F; None without a reference.
    """

    name: str
    stored: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    weight: Spectrum
    update: Spectrum | None = None
    change: float | None = None
    reading: str = "out x in"


@dataclass(frozen=True, eq=False)
class Inspection:
    """All matrices of a model, and in ``notes`` what was left out and why."""

    model: str
    reference: str | None
    energy: float
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]


def inspect_weights(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    layers: str | None = None,
    energy: float = 0.99,
    on_layer: Callable[[int, int, str], None] | None = None,
) -> Inspection:
    """Return the spectra of the weights at ``model`` and, given a ``reference``, of what was added to it.

    Both are files or folders as :func:`~lowdyn.weight_files.open_weights` reads them, one tensor at a time: memory
    is that of the largest tensor. Vectors (biases, norms) and whole numbers are left out; a tensor with more than two
    dimensions, such as a convolution (out, in, height, width), is taken as (out, in·height·width). Packed queries, keys
    and values are taken apart as :func:`~lowdyn.observe.weight_matrices` does, and named as there. ``layers`` is a
    pattern that chooses among the names. ``energy`` is the share of ‖·‖_F² that the advised rank must hold.
    ``on_layer`` is called with (number, of how many, name) before each.

    Singular values are exact, in float64. ValueError when no name matches, when model and reference share no
    matrix, or when a weight is not finite.

    >>> import tempfile, safetensors.torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, tensor in (("start", torch.eye(4)), ("end", torch.eye(4) + torch.ones(4, 4))):
    ...         safetensors.torch.save_file({"fc.weight": tensor}, f"{folder}/{name}")
    ...     (layer,) = inspect_weights(f"{folder}/end", f"{folder}/start").layers
    >>> layer.name, layer.weight.rank, layer.update.rank, layer.change
    ('fc', 4, 1, 2.0)
    """
    energy = checked_number("energy", energy, at_least=0.0, below=math.nextafter(1.0, 2.0))
    weights = open_weights(model)
    other = None if reference is None else open_weights(reference)
    heads = next((count for one in (weights, other) if one is not None and (count := _heads(one.path))), None)
    matrices, notes = _matrices(weights, heads)
    pairs: dict[str, _Stored] = {}
    if other is not None:
        theirs, _ = _matrices(other, heads)
        pairs, unpaired = _pairs(matrices, weights, theirs, other)
        notes += unpaired
    chosen = _chosen(list(matrices), layers, weights.path)
    found = []
    for number, name in enumerate(chosen, start=1):
        if on_layer is not None:
            on_layer(number, len(chosen), name)
        found.append(_layer(name, matrices[name], weights, other, pairs.get(name), energy))
    return Inspection(str(model), None if reference is None else str(reference), energy, tuple(found), tuple(notes))


@dataclass(frozen=True)
class _Stored:
    """A matrix by the name of the tensor that holds it and how it is read from that."""

    key: str
    reading: Reading


def _heads(path: Path) -> int | None:
    """Return the number of attention heads, where a config beside the weights says it."""
    config = read_config(path if path.is_dir() else path.parent)
    heads = config.get("num_attention_heads", config.get("n_head"))
    return heads if type(heads) is int and heads > 0 else None


def _matrices(weights: WeightFiles, heads: int | None) -> tuple[dict[str, _Stored], list[str]]:
    """Return the matrices of a model by plain name, and what is left out or left whole."""
    found: dict[str, _Stored] = {}
    vectors, numbers, whole = 0, [], []
    # GPT-2's way to store linear layers, as (in, out), shows in the one that is not square.
    conv1d = any(
        name.endswith("c_attn.weight") and len(shape) == 2 and shape[1] == 3 * shape[0]
        for name, shape in weights.shapes.items()
    )
    for name, shape in weights.shapes.items():
        if len(shape) < 2:
            vectors += 1
        elif not weights.dtypes[name].is_floating_point or 0 in shape:
            numbers.append(name)
        else:
            readings = of_name(plain_name(name), shape, heads, conv1d=conv1d)
            found |= {one: _Stored(name, reading) for one, reading in readings.items()}
            if len(readings) == 1 and PACKED_BY_HEAD.search(plain_name(name).removesuffix(".weight")):
                whole.append(name)
    if not found:
        raise ValueError(f"{weights.path}: no matrix of floating-point numbers among {len(weights.shapes)} tensors")
    notes = [f"vectors and scalars (biases, norms), left out: {vectors}"] if vectors else []
    if numbers:
        notes.append(f"not floating-point, left out: {_some(numbers)}")
    if whole:
        notes.append(f"queries, keys and values left together, for want of a config.json with heads: {_some(whole)}")
    return found, notes


def _chosen(names: list[str], layers: str | None, path: Path) -> list[str]:
    """Return the names in which the pattern ``layers`` is found; ValueError when there is none."""
    try:
        found = [name for name in names if layers is None or re.search(layers, name)]
    except re.error as error:
        raise ValueError(f"layers {layers!r} is no regular expression: {error}") from None
    if not found:
        raise ValueError(f"no matrix matches {layers!r}: {path} has {_some(names)}")
    return found


def _pairs(
    matrices: dict[str, _Stored], weights: WeightFiles, theirs: dict[str, _Stored], other: WeightFiles
) -> tuple[dict[str, _Stored], list[str]]:
    """Return the matrices that model and reference share, by plain name as they are in the reference, and notes."""
    shared = [name for name in matrices if name in theirs]
    reshaped = [name for name in shared if _shape(weights, matrices[name]) != _shape(other, theirs[name])]
    pairs = {name: theirs[name] for name in shared if name not in reshaped}
    if not pairs:
        raise ValueError(
            f"{weights.path} and {other.path} share no matrix: the one has {_some(list(matrices))}, "
            f"the other {_some(list(theirs))}"
        )
    lists = {
        "not in the reference": [name for name in matrices if name not in theirs],
        "only in the reference": [name for name in theirs if name not in matrices],
        "of another shape in the reference": reshaped,
    }
    return pairs, [f"{what}: {_some(names)}" for what, names in lists.items() if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shape(weights: WeightFiles, stored: _Stored) -> tuple[int, ...]:
    return stored.reading.shape(weights.shapes[stored.key])


def _layer(
    name: str, stored: _Stored, weights: WeightFiles, other: WeightFiles | None, theirs: _Stored | None, energy: float
) -> Layer:
    dtype = weights.dtypes[stored.key]
    weight = _matrix(weights, stored)
    try:
        spectrum = _spectrum(weight, energy)
        added = change = None
        if other is not None and theirs is not None:
            before = _matrix(other, theirs)
            norm = float(before.norm(dtype=torch.float64))
            coarser = max(dtype, other.dtypes[theirs.key], key=lambda one: torch.finfo(one).eps)
            update = weight.to(torch.promote_types(weight.dtype, before.dtype)).sub_(before)  # in its place
            added = _spectrum(update, energy, _rounding(spectrum.norm, weight.shape, coarser))
            change = added.norm / norm if norm else math.inf if added.norm else 0.0
    except ValueError as error:
        raise ValueError(f"{weights.path}: {name}: {error}") from None
    rows, columns = weight.shape
    kind = str(dtype).removeprefix("torch.")
    shown = stored.reading.shown
    return Layer(name, weights.shapes[stored.key], (rows, columns), kind, spectrum, added, change, shown)


def _matrix(weights: WeightFiles, stored: _Stored) -> Tensor:
    """Return a tensor as a matrix (out, in), in float32 at least."""
    tensor = stored.reading(weights.read(stored.key))
    # The eps of half precision times the width of a layer exceeds 1: no value would count as more than rounding.
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _rounding(norm: float, shape: torch.Size, dtype: torch.dtype) -> float:
    """Return twice the expected largest singular value of the rounding errors of a weight of that norm.

    Independent errors, uniform in ±eps/2 of each entry, make ‖E‖_2 ≈ eps/√12 · ‖W‖_F · (1/√rows + 1/√columns).
    """
    rows, columns = shape
    return float(2 * torch.finfo(dtype).eps / math.sqrt(12) * norm * (rows**-0.5 + columns**-0.5))


def _spectrum(matrix: Tensor, energy: float, floor: float = 0.0) -> Spectrum:
    """Return the spectrum of a matrix; values that do not exceed ``floor`` do not count to its rank."""
    found = summarize(matrix, top=min(matrix.shape))
    values = found.values
    rank = min(found.numerical_rank, int((values > floor).sum()))
    advised = min(rank_of_energy(values, energy), rank)
    squares = (values / values[0]).square() if float(values[0]) > 0 else values
    held = float(squares[:advised].sum() / squares.sum()) if found.norm else 1.0
    return Spectrum(values.numpy(), found.norm, rank, found.stable_rank, found.effective_rank, advised, held)
