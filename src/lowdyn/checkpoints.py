"""Checkpoints of a training run: complete or not there, in safetensors and JSON, never unpickled.

A checkpoint is a folder ``step-00000120`` with ``model.safetensors`` (the weights, under the model's own names),
``training.safetensors`` and ``training.json`` (everything else) and ``manifest.json``, which holds the size and the
SHA-256 of the others and is written last: without it there is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn import __version__
from lowdyn.arguments import checked_count, checked_generator
from lowdyn.files import DRAFTS, replace_atomically, sync_directory
from lowdyn.tensor_files import TensorFile, tensor_parts

_FORMAT = 1
_MODEL, _TENSORS, _STATE, _MANIFEST = "model.safetensors", "training.safetensors", "training.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its checkpoints, how often it writes one, how many stay.

    ``every`` counts updates; by default one is written after each epoch, and always one at the end. ``keep`` of
    them stay. ``generators`` are those that the training draws from beside the order of the data, such as
    ``torch.default_generator`` for dropout: their states are saved and restored. A data set that draws needs one
    that the model does not draw from.

    A run that finds a complete checkpoint in ``folder`` goes on from the last one; what is truncated or altered is
    passed over with a warning. Use one folder for one run. With several processes all must see the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder)
    ...     checkpoints.write(12, {"fc.weight": torch.eye(2)}, {"epochs": 3})
    ...     checkpoints.last(), checkpoints.read(12)[1]
    (12, {'epochs': 3})
    """

    folder: str | Path
    every: int | None = None
    keep: int = 2
    generators: tuple[torch.Generator, ...] = ()

    def __post_init__(self) -> None:
        if self.every is not None:
            checked_count("every", self.every, at_least=1)
        checked_count("keep", self.keep, at_least=1)
        for generator in self.generators:
            checked_generator(generator)

    def due(self, updates: int) -> bool:
        """Return whether a checkpoint is to be written after so many updates."""
        return self.every is not None and updates % self.every == 0

    def write(self, step: int, model: Mapping[str, Any], state: Any, *, writes: bool = True) -> None:
        """Write the checkpoint of ``step``, then remove what is older than the last ``keep``.

        ``model`` is a state dict; ``state`` any nesting of dicts, lists, tuples, tensors, arrays and plain values.
        Tensors that are spread over processes are gathered one by one: every process calls this, and the one
        with ``writes`` has it on its disk when it returns. TypeError for what is none of these.
        """
        tensors: dict[str, Tensor] = {}
        weights = {name: value for name, value in model.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in model.items() if name not in weights}
        text = json.dumps(_encoded({"model": rest, "training": state}, "state", tensors))
        parts = {
            _MODEL: tensor_parts(weights, _whole),
            _TENSORS: tensor_parts(tensors, _whole),
            _STATE: [text.encode()],
        }
        if not writes:
            for part in parts.values():
                for _ in part:  # takes part in the gathering
                    pass
            return
        folder = Path(self.folder) / f"step-{step:08d}"
        described = {}
        for name, part in parts.items():
            seen = _Seen(part)
            replace_atomically(folder / name, seen)
            described[name] = {"sha256": seen.digest.hexdigest(), "bytes": seen.size}
        # What the manifest speaks of is on the disk before it is, the name of the folder included.
        for place in (folder, folder.parent):
            sync_directory(place)
        manifest = {"format": _FORMAT, "lowdyn": __version__, "step": step, "files": described}
        replace_atomically(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_directory(folder)
        self.prune(step)

    def last(self) -> int | None:
        """Return the step of the last complete checkpoint, None without one; UserWarning for each passed over."""
        for step, folder in self._found():
            try:
                _verify(folder)
            except ValueError as error:
                warnings.warn(f"checkpoint {folder} is passed over: {error}", stacklevel=2)
            else:
                return step
        return None

    def read(self, step: int, like: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Return (model, state) as they were written; a tensor whose fellow in ``like`` is spread is spread as it."""
        like = like or {}
        folder = Path(self.folder) / f"step-{step:08d}"
        weights, tensors = TensorFile(folder / _MODEL), TensorFile(folder / _TENSORS)
        found = _decoded(json.loads((folder / _STATE).read_text(encoding="utf-8")), tensors.read)
        model = {name: spread(weights.read(name), like.get(name)) for name in weights.entries}
        return {**model, **found["model"]}, found["training"]

    def _found(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of all that look like checkpoints, the last first."""
        folders = Path(self.folder).glob("step-*")
        steps = [(int(match[1]), path) for path in folders if (match := re.fullmatch(r"step-(\d{8,18})", path.name))]
        return sorted(steps, reverse=True)

    def prune(self, step: int) -> None:
        """Remove what is older than ``step`` and beyond ``keep``, and what interrupted writing left behind."""
        older = [folder for number, folder in self._found() if number < step]
        complete = [folder for folder in older if _sizes_fit(folder)]
        for folder in set(older) - set(complete[: self.keep - 1]):
            for name in (_MANIFEST, _STATE, _TENSORS, _MODEL):  # without a manifest it is none, whatever follows
                (folder / name).unlink(missing_ok=True)
            for draft in folder.glob(DRAFTS):
                draft.unlink(missing_ok=True)
            if not any(folder.iterdir()):  # a file that is not ours stays
                folder.rmdir()
        for draft in (Path(self.folder) / f"step-{step:08d}").glob(DRAFTS):
            draft.unlink(missing_ok=True)


class _Seen:
    """Parts of a file, with the size and the hash of all that were taken."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self.parts, self.size, self.digest = parts, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for part in self.parts:
            self.size += len(part)
            self.digest.update(part)
            yield part


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the files that the manifest of ``folder`` names; ValueError without a usable one."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise ValueError("it has no manifest; writing it was interrupted") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its manifest is damaged ({type(error).__name__})") from None
    if manifest.get("format") != _FORMAT or files.keys() != {_MODEL, _TENSORS, _STATE}:
        raise ValueError(f"its manifest is not of format {_FORMAT}")
    return files


def _verify(folder: Path) -> None:
    """ValueError unless every file of a checkpoint is there as the manifest describes it."""
    for name, (sha256, size) in _manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, not {size}: truncated, or written to")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError(f"the values of {name} are not those that were written")


def _sizes_fit(folder: Path) -> bool:
    try:
        return all((folder / name).stat().st_size == size for name, (_, size) in _manifest(folder).items())
    except (ValueError, OSError):
        return False


def _encoded(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON; tensors and arrays go into ``tensors`` under their place."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _encoded(value.item(), place, tensors)
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        while place in tensors:  # the keys 0 and "0" of one dict
            place += "'"
        tensors[place] = value if isinstance(value, Tensor) else _tensor(value, place)
        return {kind: place}
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = [[_encoded(key, place, {}), _encoded(item, f"{place}.{key}", tensors)] for key, item in value.items()]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise TypeError(
        f"{place} is a {type(value).__name__}; a checkpoint holds numbers, text, tensors, arrays, lists and dicts"
    )


def _tensor(array: np.ndarray[Any, Any], place: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{place} is an array of {array.dtype}; a checkpoint holds arrays of numbers")
    return torch.from_numpy(np.array(array))


def _decoded(value: Any, read: Callable[[str], Tensor]) -> Any:
    """Return what ``_encoded`` was given."""
    if isinstance(value, list):
        return [_decoded(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return read(content)
    if kind == "array":
        return read(content).numpy()
    if kind == "tuple":
        return tuple(_decoded(item, read) for item in content)
    pairs = {_decoded(key, read): _decoded(item, read) for key, item in content}
    return Counter(pairs) if kind == "counter" else pairs


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is spread over processes (a DTensor of FSDP2) as a whole."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def spread(tensor: Tensor, like: Any) -> Tensor:
    """Return ``tensor`` laid out over the processes as ``like`` is; as it is where ``like`` is an ordinary tensor."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the same values: none are sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
