"""The weight matrices of any model by name: what spectra are taken of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lowdyn.networks.linear import Factor
from lowdyn.observe.reading import Reading, attention, convolution, split

# What DDP puts in front, and torch.compile wherever it wraps; a submodule of one's own named "module" stays.
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)(?:\.|$))+|(?<=\.)_orig_mod(?:\.|$)")


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
    """One weight of a module, read as a matrix (…, out, in) whenever it is called; ``reading`` says how."""

    module: nn.Module
    attribute: str
    reading: Reading

    @property
    def key(self) -> tuple[int, int]:
        """What two names of one tied weight share."""
        parameter = self.module._parameters.get(self.attribute)
        # A parametrized weight is a new tensor at every reading: it is its module's own.
        return id(
            self.module if parameter is None else parameter
        ), 0 if self.reading.part is None else self.reading.part[0]

    @property
    def exact(self) -> bool:
        """Whether it is a factor of a deep linear network, whose laws are checked to the last digit."""
        return isinstance(self.module, Factor)

    @property
    def spread(self) -> int:
        """Over how many processes the parameter is spread (FSDP2); 1 where this one holds it."""
        mesh = getattr(self.module._parameters.get(self.attribute), "device_mesh", None)
        return 1 if mesh is None else int(mesh.size())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (…, out, in), without gathering a weight that is sharded over processes."""
        with _parametrizations_at_rest(self.module):
            shape = tuple(getattr(self.module, self.attribute).shape)
        return self.reading.shape(shape)

    def __call__(self) -> Tensor:
        """Return the matrix of the moment, detached; a view wherever a view can be.

        A weight sharded over processes (a DTensor, as FSDP2 makes) is gathered whole: every process must call.
        """
        with torch.no_grad(), _parametrizations_at_rest(self.module):
            weight = getattr(self.module, self.attribute).detach()
        if hasattr(weight, "full_tensor"):
            weight = weight.full_tensor()
        return self.reading(weight)


def weight_matrices(model: nn.Module, layers: str | None = None) -> dict[str, WeightMatrix]:
    """Return the weight matrices whose name matches the pattern ``layers``; each is read by calling it.

    Read from the parameters, so that neither hooks nor a forward pass are needed. What counts as a matrix:

    - linear layers and the factors of a deep linear network: (out, in), under the module's name
    - ``nn.MultiheadAttention``, packed or not: its ``q``, ``k`` and ``v``, each (out, in), as ``attention.q`` …; so
      also linear layers of 3·d x d called ``qkv``, ``Wqkv``, ``qkv_proj`` or ``to_qkv`` (rows: all queries, all keys,
      all values) and GPT-2's ``c_attn``, and, of a model whose ``config`` says ``num_attention_heads``,
      ``query_key_value`` and DeBERTa's ``attention.self.in_proj`` (head by head)
    - convolutions: (out, in·k·k), a transposed convolution (in, out·k·k); of a grouped one, in and out are a group's
    - embeddings: (entries, dim), only when ``layers`` is given and matches

    A weight that two modules share comes once, under the first name. ValueError when no name matches.

    >>> sorted(weight_matrices(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Conv2d(3, 1, 5))))
    ['0', '2']
    >>> list(weight_matrices(nn.MultiheadAttention(4, 2), "attention|q|out"))
    ['q', 'out_proj']
    """
    found: dict[str, WeightMatrix] = {}
    heads = _heads(model)
    for name, module in model.named_modules():
        for suffix, matrix in _matrices_of(plain_name(name), module, heads):
            if layers is not None or not isinstance(module, nn.Embedding):
                found[".".join(filter(None, (plain_name(name), suffix))) or "self"] = matrix
    chosen: dict[tuple[int, int], str] = {}
    for name in select(list(found), layers, "weight"):
        chosen.setdefault(found[name].key, name)
    return {name: found[name] for name in chosen.values()}


def _heads(model: nn.Module) -> int | None:
    """Return the number of attention heads, where some ``config`` in the model, as transformers' have one, says it."""
    counts = (getattr(getattr(one, "config", None), "num_attention_heads", None) for one in model.modules())
    return next((count for count in counts if isinstance(count, int)), None)


def _matrices_of(name: str, module: nn.Module, heads: int | None) -> Iterator[tuple[str, WeightMatrix]]:
    """Yield the matrices that ``module`` itself holds, each with what its name adds to the module's."""
    if isinstance(module, nn.MultiheadAttention):
        for attribute, _ in module.named_parameters(recurse=False):
            for one, reading in (attention(attribute) or {}).items():
                yield one, WeightMatrix(module, attribute, reading)
    # Not torch's but transformers' own class, known by its name: a linear layer stored as (in, out).
    elif isinstance(module, nn.Linear | Factor) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf")):
        whole = Reading(transposed=not isinstance(module, nn.Linear | Factor))
        if not _is_floating(module):
            return
        stored = WeightMatrix(module, "weight", Reading()).shape
        for suffix, reading in split(name, whole, stored, heads).items():
            yield suffix, WeightMatrix(module, "weight", reading)
    elif isinstance(module, _ConvNd):
        reading = convolution(tuple(module.kernel_size), transposed=isinstance(module, _ConvTransposeNd))
        yield "", WeightMatrix(module, "weight", reading)
    elif isinstance(module, nn.Embedding):
        yield "", WeightMatrix(module, "weight", Reading("entries x dim"))


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
