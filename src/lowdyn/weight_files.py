"""The weights of a model on disk, one tensor at a time: safetensors, in one file or in shards, or a torch archive.

Whatever such a file holds, nothing in it is executed: pickles are not read, archives of ``torch.save`` only as far as
``weights_only=True`` reads them. What is refused is refused with a ValueError of one line.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdyn.tensor_files import TensorFile

_INDEX = ".index.json"
_LONGEST_INDEX = 64 * 2**20
# In the order in which a folder is searched; the names are those of transformers and PEFT.
_USUAL = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")


@dataclass(frozen=True)
class WeightFiles:
    """Named tensors on disk: their shapes and dtypes, ``read`` for one of them, and what kind of files they are in."""

    path: Path
    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]


def open_weights(path: str | Path) -> WeightFiles:
    """Return the weights at ``path``, a file or a folder, without reading any.

    A folder holds shards with ``*.safetensors.index.json``, ``model.safetensors`` or another single file of weights.
    FileNotFoundError when there is nothing, ValueError when a file is not what it says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"fc.weight": torch.ones(2, 3)}, f"{folder}/model.pt")
    ...     weights = open_weights(folder)
    ...     weights.kind, weights.shapes, weights.read("fc.weight").sum()
    ('torch archive', {'fc.weight': (2, 3)}, tensor(6.))
    """
    path = Path(path)
    if path.is_dir():
        path = _of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file or folder of weights")
    if path.name.endswith(_INDEX):
        return _shards(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return _archive(path)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        raise ValueError(f"{path}: a pickle, which could run anything when read; save the weights as safetensors")
    tensors = TensorFile(path)
    described = _described({name: tensors.entries[name] for name in sorted(tensors.entries, key=_in_order)})
    return WeightFiles(path, "safetensors", *described, tensors.read)


def _described(tensors: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    return {name: tuple(one.shape) for name, one in tensors.items()}, {name: one.dtype for name, one in tensors.items()}


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10; safetensors files are in no order of the model's."""
    return [(int(part), "") if re.fullmatch("[0-9]{1,18}", part) else (-1, part) for part in name.split(".")]


def _of_folder(folder: Path) -> Path:
    """Return the file of ``folder`` that says where the weights are."""
    indices = sorted(folder.glob(f"*.safetensors{_INDEX}"))
    usual = [folder / name for name in _USUAL if (folder / name).is_file()]
    single = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    for found in (indices, usual[:1], single):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:5])
            raise ValueError(f"{folder}: {len(found)} files may hold the weights ({names}); name one of them")
    raise FileNotFoundError(f"{folder}: no safetensors file and no torch archive in this folder")


def _shards(index: Path) -> WeightFiles:
    """Return the weights that an index spreads over files beside it."""
    try:
        if index.stat().st_size > _LONGEST_INDEX:
            raise ValueError("it is too long for an index")
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise ValueError("its weight_map does not name a file for each tensor")
        for name in table.values():
            # A plain name in this folder; what it links to is the owner's business, as in a model cache.
            if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
                raise ValueError(f"it names {name!r}, which is no safetensors file beside it")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it has no weight_map" if isinstance(error, KeyError | TypeError) else str(error).splitlines()[0]
        raise ValueError(f"{index}: no index of shards: {reason}") from None
    files = {name: TensorFile(index.with_name(name)) for name in sorted(set(table.values()))}
    for name, file in table.items():
        if name not in files[file].entries:
            raise ValueError(f"{index}: {name!r} is not in {file}")
    described = _described({name: files[table[name]].entries[name] for name in sorted(table, key=_in_order)})
    kind = f"safetensors, {len(files)} shard{'s' if len(files) != 1 else ''}"
    return WeightFiles(index.parent, kind, *described, lambda name: files[table[name]].read(name))


def _archive(path: Path) -> WeightFiles:
    """Return the tensors of a state dict that ``torch.save`` wrote; they stay on the disk until they are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = _state_dict(state)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1][:80]}" if asked else "it holds more than tensors"
        raise ValueError(f"{path}: refused: {what}; save a plain state_dict, or safetensors") from None
    except (ValueError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: no archive of a state_dict that can be read: {reason}") from None
    return WeightFiles(path, "torch archive", *_described(tensors), lambda name: tensors[name].detach().clone())


def _state_dict(state: Any) -> dict[str, Tensor]:
    """Return the named tensors of what an archive held: a state dict, or one under its usual name."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, not a state_dict")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and isinstance(name, str)}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{name!r} is no plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name!r} claims more values than the file holds")
    return tensors
