"""How a stored tensor is read as one matrix or several: in a module that trains and in a file alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

# Layers whose rows are all queries, then all keys, then all values; and those that go head by head.
PACKED = re.compile(r"(?:^|\.)(?:qkv|Wqkv|qkv_proj|to_qkv|c_attn)$")
PACKED_BY_HEAD = re.compile(r"(?:^|\.)(?:query_key_value|attention\.self\.in_proj)$")
# CodeGen's goes by queries, values, keys in each of four blocks.
PACKED_OTHERWISE = re.compile(r"(?:^|\.)h\.\d+\.attn\.qkv_proj$")
CONV1D = re.compile(r"(?:^|\.)(?:c_attn|q_attn|c_proj|c_fc)$")  # linear layers that GPT-2 stores as (in, out)
QUERY_KEY_VALUE = ("q", "k", "v")


@dataclass(frozen=True)
class Reading:
    """How a tensor becomes a matrix (…, out, in): ``shown`` says it, such as ``out x in·3·3``.

    The dimensions after the first become one (``flat``), or the last two change places (``transposed``); ``part``
    (i, n) is then the i-th of n equal parts of the rows, within each of ``heads`` equal blocks of them.
    """

    shown: str = "out x in"
    flat: bool = False
    transposed: bool = False
    part: tuple[int, int] | None = None
    heads: int = 1

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the matrix made of a tensor of shape ``stored``."""
        if self.flat:
            stored = (stored[0], prod(stored[1:]))
        if self.transposed:
            stored = (*stored[:-2], stored[-1], stored[-2])
        return stored if self.part is None else (stored[0] // self.part[1], *stored[1:])

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the matrix, a view of ``tensor`` wherever a view can be.

        >>> import torch
        >>> Reading(part=(1, 2), heads=2)(torch.arange(4.0)[:, None]).flatten()
        tensor([1., 3.])
        """
        if self.flat:
            tensor = tensor.flatten(start_dim=1)
        if self.transposed:
            tensor = tensor.mT
        if self.part is None:
            return tensor
        place, count = self.part
        if self.heads == 1:
            return tensor.chunk(count, dim=0)[place]
        return tensor.reshape(self.heads, count, -1, tensor.shape[-1])[:, place].flatten(0, 1)


def split(name: str, whole: Reading, stored: tuple[int, ...], heads: int | None) -> dict[str, Reading]:
    """Return the matrices in the linear layer ``name``, by what their names add to it: q, k and v if it is packed.

    ``qkv`` (DeiT and other vision transformers), ``Wqkv`` (MPT, ModernBERT), ``qkv_proj`` (Phi-3), ``to_qkv`` and
    ``c_attn`` (GPT-2) hold all queries, all keys, all values; ``query_key_value`` (GPT-NeoX, BLOOM) and DeBERTa's
    ``attention.self.in_proj`` one head's after the other's, which takes the number of ``heads`` to tell apart. A layer
    of other proportions than 3·d x d, such as one whose heads share keys, is one matrix; so are other layers called
    ``in_proj``, which hold something else (LFM2's gates), and CodeGen's ``qkv_proj``.

    >>> [list(split(name, Reading(), (12, 4), None)) for name in ("attn.qkv", "query_key_value")]
    [['q', 'k', 'v'], ['']]
    """
    rows, columns = whole.shape(stored)[-2:]
    if rows == 3 * columns and PACKED.search(name) and not PACKED_OTHERWISE.search(name):
        return _thirds(whole, 1)
    if rows == 3 * columns and PACKED_BY_HEAD.search(name) and heads and columns % heads == 0:
        return _thirds(whole, heads)
    return {"": whole}


def _thirds(whole: Reading, heads: int) -> dict[str, Reading]:
    return {one: replace(whole, part=(place, 3), heads=heads) for place, one in enumerate(QUERY_KEY_VALUE)}


def attention(attribute: str) -> dict[str, Reading] | None:
    """Return the same of a weight of torch's ``nn.MultiheadAttention``, None for another ``attribute``.

    >>> list(attention("in_proj_weight")), list(attention("k_proj_weight")), attention("weight")
    (['q', 'k', 'v'], ['k'], None)
    """
    if attribute == "in_proj_weight":
        return _thirds(Reading(), 1)
    single = {f"{one}_proj_weight": {one: Reading()} for one in QUERY_KEY_VALUE}
    return single.get(attribute)


def convolution(kernel: tuple[int, ...], *, transposed: bool = False) -> Reading:
    """Return how the weight of a convolution, of a transposed one (in, out, …), is read.

    >>> convolution((3, 5)).shown
    'out x in·3·5'
    """
    first, second = ("in", "out") if transposed else ("out", "in")
    return Reading(f"{first} x {second}" + "".join(f"·{size}" for size in kernel), flat=True)


def of_name(name: str, stored: tuple[int, ...], heads: int | None, *, conv1d: bool) -> dict[str, Reading]:
    """Return the matrices in a tensor of a file, by the names that a module's would have.

    ``conv1d`` says that the file is GPT-2's or of its kind; a file does not tell a transposed convolution.

    >>> list(of_name("attn.in_proj_weight", (12, 4), None, conv1d=False))
    ['attn.q', 'attn.k', 'attn.v']
    """
    module, _, attribute = name.rpartition(".")
    if len(stored) > 2:
        return {name.removesuffix(".weight"): convolution(stored[2:])}
    if attribute == "weight":
        whole = Reading(transposed=conv1d and CONV1D.search(module) is not None)
        parts = split(module, whole, stored, heads)
    else:
        parts = attention(attribute) or {}
        if attribute == "in_proj_weight" and stored[0] != 3 * stored[1]:
            parts = {}
    return {".".join(filter(None, (module, one))): reading for one, reading in parts.items()} or {name: Reading()}
