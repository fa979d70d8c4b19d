"""Fitted estimators as files: arrays as safetensors, parameters as JSON in the header, one file, nothing unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lowdyn.files import replace_atomically

FORMAT = "lowdyn.DeepMatrixCompletion 1"


def save(path: str | os.PathLike[str], parameters: dict[str, Any], numbers: dict[str, Any], arrays: Any) -> None:
    """Write parameters, plain numbers and arrays to ``path``, whole or not at all.

    A parameter that JSON cannot hold, such as a RandomState, is written as null.
    """
    from safetensors.numpy import save as serialized

    plain = {name: value if _is_plain(value) else None for name, value in parameters.items()}
    header = {"format": FORMAT, "parameters": json.dumps(plain), "numbers": json.dumps(numbers)}
    content = serialized({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    replace_atomically(Path(path), content)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the parameters, numbers and arrays of a file that ``save`` wrote; ValueError for another one."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, needed {FORMAT!r}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return json.loads(header["parameters"]), json.loads(header["numbers"]), arrays
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a model that DeepMatrixCompletion.save wrote: {error}") from error


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
