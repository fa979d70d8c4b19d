"""safetensors files, one tensor at a time: written as a stream, read after every offset has been checked.

The format is an 8-byte length, a JSON header and the values (https://github.com/huggingface/safetensors). Nothing in
such a file is ever executed, and no more than one tensor is in memory.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# 200 000 tensors need less; Python's objects for a header take some twenty times its size.
_LONGEST_HEADER = 32 * 2**20
_MOST_DIMENSIONS = 64
_LONGEST_CONFIG = 2**20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file: bytes [begin, end)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A safetensors file whose header is read and checked; tensors are read when asked for.

    ``entries`` maps names to :class:`Entry`. ValueError, in one line, for what is no complete safetensors file:
    a header that is too long, not JSON or names a tensor twice, an unknown dtype, offsets that leave the file,
    overlap or do not fit the shape.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{self.path}: truncated, or no safetensors file: {size} bytes cannot hold its header")
            if length > _LONGEST_HEADER:
                raise ValueError(f"{self.path}: a header of {length} bytes; at most {_LONGEST_HEADER} are read")
            header = file.read(length)
        try:
            self.entries = _entries(header, 8 + length, size)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: no valid safetensors file: {error}") from None

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in the dtype of the file."""
        entry = self.entries[name]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        buffer = bytearray(entry.end - entry.begin)
        with self.path.open("rb") as file:
            file.seek(entry.begin)
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{self.path}: {name!r} ends too early; was the file written to meanwhile?")
        return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)


def _entries(header: bytes, begin: int, size: int) -> dict[str, Entry]:
    """Return the checked entries of a header whose values start at ``begin`` of a file of ``size`` bytes."""
    try:
        found = json.loads(header.decode("utf-8"), object_pairs_hook=_each_once)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the header is not JSON ({reason})") from None
    if not isinstance(found, dict):
        raise ValueError("the header is no JSON object")
    found.pop("__metadata__", None)
    entries = {name: _entry(name, value, begin) for name, value in found.items()}
    place = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise ValueError(f"the values of {name!r} overlap others or leave a gap")
        place = entry.end
    if place != size:
        raise ValueError(f"the header speaks of {place} bytes, the file has {size}: truncated, or written to")
    return entries


def _entry(name: str, value: Any, begin: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} has the dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > _MOST_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the offsets of {name!r} are not lists of whole numbers")
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != wanted:
        raise ValueError(f"{name!r} needs {wanted} bytes for its shape and dtype, its offsets hold another number")
    return Entry(DTYPES[dtype], tuple(shape), begin + offsets[0], begin + offsets[1])


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the header names {twice!r} twice")
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the ``config.json`` that transformers puts beside weights, empty where there is none.

    ValueError, in one line, for what is no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise ValueError("it is too long")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no config that can be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: no config: it is no JSON object")
    return config


def tensor_parts(
    tensors: Mapping[str, Tensor], gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Iterator[bytes | memoryview]:
    """Yield the parts of a safetensors file in order: the header, then the values of each tensor.

    ``gather`` makes a whole CPU or device tensor of one that is spread over processes; it is called for one tensor
    after the other, in the same order on every process. ValueError for a dtype that the format does not know.

    >>> import io, safetensors.torch
    >>> content = b"".join(tensor_parts({"a": torch.arange(3.0), "b": torch.tensor(True)}))
    >>> sorted(safetensors.torch.load(content).items())
    [('a', tensor([0., 1., 2.])), ('b', tensor(True))]
    """
    # Wide values first: every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, place = {}, 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name!r} is {tensor.dtype}, which safetensors files do not hold")
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        values = gather(tensors[name]).detach().cpu().contiguous()
        if values.numel():
            yield values.reshape(-1).view(torch.uint8).numpy().data
