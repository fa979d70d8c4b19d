"""Vision transformers from a file of weights that others trained: transformers' names, or timm's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdyn.networks.vit import SmallViT
from lowdyn.tensor_files import TensorFile, read_config

HEAD_WIDTH = 64  # of every ViT from tiny to large; a config.json says its own
EPSILON = 1e-6  # of the layer norms, where no config.json says otherwise


@dataclass(frozen=True)
class _Names:
    """How a library calls our modules; ``packed`` are the rows of queries, keys and values in one matrix."""

    outer: Mapping[str, str]
    block: str
    inner: Mapping[str, str]
    packed: str | None = None


_TRANSFORMERS = _Names(
    {
        "class_token": "embeddings.cls_token",
        "positions": "embeddings.position_embeddings",
        "patches": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    "encoder.layer.",
    {
        "norm1": "layernorm_before",
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "mixed": "attention.output.dense",
        "norm2": "layernorm_after",
        "expand": "intermediate.dense",
        "contract": "output.dense",
    },
)
_TIMM = _Names(
    {"class_token": "cls_token", "positions": "pos_embed", "patches": "patch_embed.proj", "norm": "norm"},
    "blocks.",
    {"norm1": "norm1", "mixed": "attn.proj", "norm2": "norm2", "expand": "mlp.fc1", "contract": "mlp.fc2"},
    packed="attn.qkv",
)
_HEADS = re.compile(r"(pooler|classifier|head|pre_logits)\.")  # for other tasks: left out


def pretrained_vit(path: str | Path, num_classes: int, *, generator: torch.Generator) -> SmallViT:
    """Return the vision transformer whose weights are the safetensors file ``path``, with a head of zeros.

    Tensors are named as transformers publishes ``ViTModel`` and ``ViTForImageClassification``, or as timm's
    ``VisionTransformer``; sizes are read off their shapes. Heads are 64 wide and layer norms have ε = 1e-6 unless a
    ``config.json`` beside the file says otherwise. In float32; ``generator`` draws what is then overwritten.

    Nothing is unpickled. ValueError, in one line, for a file that is no whole safetensors file, a tensor that is
    missing, of the wrong shape, not floating-point or not of this architecture, and a config that contradicts them.
    """
    path = Path(path)
    try:
        file = TensorFile(path)
        names, prefix = _names_of(file)
        config = read_config(path.parent)
        sizes = _sizes(file, names, prefix, config)
        model = SmallViT(num_classes=num_classes, generator=generator, **sizes)
        _fill(model, file, names, prefix)
    except ValueError as error:
        raise ValueError(str(error) if str(path.parent) in str(error) else f"{path}: {error}") from None
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = float(config.get("layer_norm_eps", EPSILON))
    nn.init.zeros_(model.output.weight)  # as in Dosovitskiy et al. 2021
    return model


def _names_of(file: TensorFile) -> tuple[_Names, str]:
    """Return the naming that a file follows and what stands in front of every name."""
    for names in (_TRANSFORMERS, _TIMM):
        for prefix in ("", "vit."):
            if prefix + names.outer["class_token"] in file.entries:
                return names, prefix
    raise ValueError("no vision transformer: neither embeddings.cls_token (transformers) nor cls_token (timm) is in it")


def _shape(file: TensorFile, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in file.entries:
        raise ValueError(f"{name!r} is missing")
    shape = file.entries[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{name!r} has the shape {shape}, needed {dimensions} dimensions, none of them 0")
    return shape


def _sizes(file: TensorFile, names: _Names, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of SmallViT; ValueError where shapes and config do not go together."""
    width, channels, patch, _ = _shape(file, f"{prefix}{names.outer['patches']}.weight", 4)
    tokens = _shape(file, prefix + names.outer["positions"], 3)[1] - 1
    hidden, _ = _shape(file, f"{prefix}{names.block}0.{names.inner['expand']}.weight", 2)
    numbered = re.compile(re.escape(prefix + names.block) + r"(\d{1,4})\.")
    depth = len({match[1] for name in file.entries if (match := numbered.match(name))})
    side = math.isqrt(max(tokens, 0))
    heads = config.get("num_attention_heads", max(1, width // HEAD_WIDTH))
    if side < 1 or side**2 != tokens or hidden % width or type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(
            f"{tokens} patches, width {width}, {hidden} hidden units and {heads!r} heads: needed a square number of "
            "patches, a multiple of the width and a divisor of it"
        )
    found = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }
    for key, value in found.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.json says {key} = {config[key]!r}; the tensors, or this architecture, {value!r}")
    image = (side * patch, side * patch, channels)
    return {
        "image": image, "width": width, "depth": depth, "heads": heads, "patch": patch, "expansion": hidden // width,
    }  # fmt: skip


def _sources(model: SmallViT, names: _Names) -> Iterator[tuple[str, str, int | None]]:
    """Yield each of our tensors' names but the head's, the name in the file, and which third of its rows it is."""
    for ours in model.state_dict():
        module, _, kind = ours.rpartition(".")
        place, _, inner = module.partition(".")
        if place == "output":
            continue
        if inner:
            block = f"{names.block}{int(place.removeprefix('block')) - 1}."
            if names.packed and inner in ("query", "key", "value"):
                yield ours, f"{block}{names.packed}.{kind}", ("query", "key", "value").index(inner)
            else:
                yield ours, f"{block}{names.inner[inner]}.{kind}", None
        else:
            yield ours, f"{names.outer[module]}.{kind}" if module else names.outer[kind], None


def _fill(model: SmallViT, file: TensorFile, names: _Names, prefix: str) -> None:
    """Copy the file's tensors into ``model``, each checked."""
    state, used = model.state_dict(), set()
    channels, patch = model.image[2], model.patch
    for ours, theirs, third in _sources(model, names):
        theirs = prefix + theirs
        used.add(theirs)
        target = state[ours]
        wanted = tuple(target.shape)
        if ours == "patches.weight":  # a convolution there, a linear layer of the pixels' own order here
            wanted = (wanted[0], channels, patch, patch)
        if third is not None:
            wanted = (3 * wanted[0], *wanted[1:])
        if theirs not in file.entries:
            raise ValueError(f"{theirs!r} is missing")
        entry = file.entries[theirs]
        if entry.shape != wanted or not entry.dtype.is_floating_point:
            raise ValueError(f"{theirs!r} is {entry.dtype} of shape {entry.shape}, needed floating-point {wanted}")
        value: Tensor = file.read(theirs).to(target.dtype)
        if ours == "patches.weight":
            value = value.permute(0, 2, 3, 1).flatten(1)
        target.copy_(value if third is None else value.chunk(3)[third])
    unknown = [name for name in file.entries if name not in used and not _HEADS.match(name.removeprefix(prefix))]
    if unknown:
        raise ValueError(f"{', '.join(map(repr, unknown[:3]))}: not of this architecture")
