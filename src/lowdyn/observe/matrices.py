"""The weight matrices of any model by name: what spectra are taken of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lowdyn.networks.linear import Factor

# What DDP puts in front, and torch.compile wherever it wraps; a submodule of one's own named "module" stays.
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)(?:\.|$))+|(?<=\.)_orig_mod(?:\.|$)")
PACKED = re.compile(r"(?:^|\.)(?:qkv|c_attn)$")  # linear layers whose rows are all queries, all keys, all values
QUERY_KEY_VALUE = ("q", "k", "v")


def plain_name(name: str) -> str:
    """Return a module's name without the prefixes of DDP and torch.compile.

    >>> plain_name("_orig_mod.module.encoder.0")
    'encoder.0'
    >>> plain_name("block.module.0")
    'block.module.0'
    """
    return WRAPPERS.sub("", name).rstrip(".")


def select(names: list[str], layers: str | None, what: str) -> list[str]:
    """Return the ``names`` in which the pattern ``layers`` is found; ValueError with the candidates if none."""
    chosen = names if layers is None else [name for name in names if re.search(layers, name)]
    if not chosen:
        held = ", ".join(names) if names else f"no {what} at all"
        raise ValueError(f"no {what} matches {layers!r}: this model has {held}; pass layers=… to choose among them")
    return chosen


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """One weight of a module, read as a matrix (…, out, in) whenever it is called.

    ``part`` (i, n) is the i-th of n equal parts of the rows, for packed weights; ``shown`` says how the parameter
    was made a matrix, such as ``out x in·3·3``.
    """

    module: nn.Module
    attribute: str
    shown: str
    flat: bool = False
    transposed: bool = False
    part: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What two names of one tied weight share."""
        parameter = self.module._parameters.get(self.attribute)
        # A parametrized weight is a new tensor at every reading: it is its module's own.
        return id(self.module if parameter is None else parameter), 0 if self.part is None else self.part[0]

    @property
    def exact(self) -> bool:
        """Whether it is a factor of a deep linear network, whose laws are checked to the last digit."""
        return isinstance(self.module, Factor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (…, out, in), without gathering a weight that is sharded over processes."""
        with _parametrizations_at_rest(self.module):
            shape = tuple(getattr(self.module, self.attribute).shape)
        if self.flat:
            shape = (shape[0], prod(shape[1:]))
        if self.transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return shape if self.part is None else (shape[0] // self.part[1], *shape[1:])

    def __call__(self) -> Tensor:
        """Return the matrix of the moment, detached; a view wherever a view can be.

        A weight sharded over processes (a DTensor, as FSDP2 makes) is gathered whole: every process must call.
        """
        with torch.no_grad(), _parametrizations_at_rest(self.module):
            weight = getattr(self.module, self.attribute).detach()
        if hasattr(weight, "full_tensor"):
            weight = weight.full_tensor()
        if self.flat:
            weight = weight.flatten(start_dim=1)
        if self.transposed:
            weight = weight.mT
        return weight if self.part is None else weight.chunk(self.part[1], dim=0)[self.part[0]]


def weight_matrices(model: nn.Module, layers: str | None = None) -> dict[str, WeightMatrix]:
    """Return the weight matrices whose name matches the pattern ``layers``; each is read by calling it.

    Read from the parameters, so that neither hooks nor a forward pass are needed. What counts as a matrix:

    - linear layers and the factors of a deep linear network: (out, in), under the module's name
    - ``nn.MultiheadAttention``, packed or not: its ``q``, ``k`` and ``v``, each (out, in), as ``attention.q`` …; so
      also linear layers called ``qkv`` (rows: all queries, all keys, all values) and GPT-2's ``c_attn``
    - convolutions: (out, in·k·k), a transposed convolution (in, out·k·k); of a grouped one, in and out are a group's
    - embeddings: (entries, dim), only when ``layers`` is given and matches

    A weight that two modules share comes once, under the first name. ValueError when no name matches.

    >>> sorted(weight_matrices(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Conv2d(3, 1, 5))))
    ['0', '2']
    >>> list(weight_matrices(nn.MultiheadAttention(4, 2), "attention|q|out"))
    ['q', 'out_proj']
    """
    found: dict[str, WeightMatrix] = {}
    for name, module in model.named_modules():
        for suffix, matrix in _matrices_of(plain_name(name), module):
            if layers is not None or not isinstance(module, nn.Embedding):
                found[".".join(filter(None, (plain_name(name), suffix))) or "self"] = matrix
    chosen: dict[tuple[int, int], str] = {}
    for name in select(list(found), layers, "weight"):
        chosen.setdefault(found[name].key, name)
    return {name: found[name] for name in chosen.values()}


def _matrices_of(name: str, module: nn.Module) -> Iterator[tuple[str, WeightMatrix]]:
    """Yield the matrices that ``module`` itself holds, each with what its name adds to the module's."""
    if isinstance(module, nn.MultiheadAttention):
        for place, one in enumerate(QUERY_KEY_VALUE):
            if module.in_proj_weight is not None:
                yield one, WeightMatrix(module, "in_proj_weight", "out x in", part=(place, 3))
            else:
                yield one, WeightMatrix(module, f"{one}_proj_weight", "out x in")
    # Not torch's but transformers' own class, known by its name: a linear layer stored as (in, out).
    elif isinstance(module, nn.Linear | Factor) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf")):
        transposed = not isinstance(module, nn.Linear | Factor)
        whole = WeightMatrix(module, "weight", "out x in", transposed=transposed)
        if not _is_floating(module):
            return
        if PACKED.search(name) and whole.shape[-2] == 3 * whole.shape[-1]:
            for place, one in enumerate(QUERY_KEY_VALUE):
                yield one, WeightMatrix(module, "weight", "out x in", transposed=transposed, part=(place, 3))
        else:
            yield "", whole
    elif isinstance(module, _ConvNd):
        first, second = ("in", "out") if isinstance(module, _ConvTransposeNd) else ("out", "in")
        kernel = "".join(f"·{size}" for size in module.kernel_size)
        yield "", WeightMatrix(module, "weight", f"{first} x {second}{kernel}", flat=True)
    elif isinstance(module, nn.Embedding):
        yield "", WeightMatrix(module, "weight", "entries x dim")


def _is_floating(module: nn.Module) -> bool:
    with _parametrizations_at_rest(module):
        weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.ndim >= 2


@contextmanager
def _parametrizations_at_rest(module: nn.Module) -> Iterator[None]:
    """Read a parametrized weight as evaluation would: spectral norm, for one, takes a step at every reading."""
    held = getattr(module, "parametrizations", None)
    training = [] if held is None else [part for part in held.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
