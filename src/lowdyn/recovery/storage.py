"""Fitted estimators as files: arrays as safetensors, parameters as JSON in the header, one file, nothing unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import sparse

from lowdyn.arguments import checked_count, checked_number
from lowdyn.files import replace_atomically
from lowdyn.problems.entries import Entries
from lowdyn.recovery.objective import Factors
from lowdyn.recovery.parameters import check_parameters

FORMAT = "lowdyn.DeepMatrixCompletion 1"
NUMBERS = {"mean", "range", "penalty", "n_iter", "regularization", "depth", "feature_names"}
ARRAYS = {"loss_curve_": "F64", "validation_curve_": "F64", "seen_starts": "I64", "seen_columns": "I32"}


def save(path: str | os.PathLike[str], parameters: dict[str, Any], numbers: dict[str, Any], arrays: Any) -> None:
    """Write parameters, plain numbers (``NUMBERS``) and arrays to ``path``, whole or not at all.

    A random_state that is no number is written as null. ValueError or TypeError for other parameters that no fit takes.
    """
    from safetensors.numpy import save as serialized

    check_parameters(SimpleNamespace(**parameters))
    plain = {name: _plain(value) for name, value in parameters.items()}
    header = {"format": FORMAT, "parameters": json.dumps(plain), "numbers": json.dumps(numbers)}
    content = serialized({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    replace_atomically(Path(path), content)


def load(
    path: str | os.PathLike[str], names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Factors]:
    """Return the parameters (``names``), numbers, arrays and factors of a file that ``save`` wrote, all of it checked.

    FileNotFoundError where no file is; ValueError for another file, in one line that names it and what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, needed {FORMAT!r}")
            parameters, numbers = (_read_json(header, name) for name in ("parameters", "numbers"))
            _check_names("parameter", parameters, set(names))
            _check_names("number", numbers, NUMBERS)
            depth = checked_count("depth of the fit", numbers["depth"], at_least=2)
            stored = set(file.keys())
            ordered = [f"factor_{place}" for place in range(min(2 + depth, 1 + len(stored)))]
            _check_names("array", stored, {*ARRAYS, *ordered})
            arrays = {name: _read_array(file, name) for name in stored}
        factors = Factors.of([arrays[name] for name in ordered])
        _check_parameters(parameters)
        _check_arrays(arrays, ordered, factors)
        _check_numbers(numbers, columns=len(factors.right))
    except (SafetensorError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a model that DeepMatrixCompletion.save wrote: {reason}") from error
    return parameters, numbers, arrays, factors


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, bool | int | float | str) else None


def _read_json(header: dict[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(header.get(name, "null"))
    except ValueError as error:
        raise ValueError(f"its {name} are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"its {name} are {'missing' if value is None else type(value).__name__}, needed a JSON object")
    return value


def _check_names(kind: str, given: Collection[str], needed: set[str]) -> None:
    if missing := sorted(needed.difference(given)):
        raise ValueError(f"{kind} {missing[0]} is missing")
    if unknown := sorted(set(given) - needed):
        raise ValueError(f"{kind} {unknown[0]} is unknown")


def _read_array(file: Any, name: str) -> Any:
    """Return an array; its type is looked at first, since some of safetensors' types are none of NumPy's."""
    found, needed = file.get_slice(name).get_dtype(), ARRAYS.get(name, "F32 or F64")
    if found not in needed:
        raise ValueError(f"array {name} holds {found}, needed {needed}")
    return file.get_tensor(name)


def _check_parameters(parameters: dict[str, Any]) -> None:
    check_parameters(SimpleNamespace(**parameters))
    if parameters["random_state"] is not None:
        checked_count("random_state", parameters["random_state"])


def _check_arrays(arrays: dict[str, Any], ordered: list[str], factors: Factors) -> None:
    left, right = factors.left, factors.right
    if left.ndim != 2 or right.ndim != 2 or not left.size or not right.size:
        raise ValueError(f"factor_0 {left.shape} and factor_1 {right.shape} must be (rows, rank) and (columns, rank)")
    (rows, rank), columns = left.shape, len(right)
    shapes = [left.shape, (columns, rank), (rows,), (columns,), *[(rank, rank)] * len(factors.cores)]
    free = {name: (arrays[name].size,) for name in ARRAYS}
    for name, shape in {**free, "seen_starts": (rows + 1,), **dict(zip(ordered, shapes, strict=True))}.items():
        if arrays[name].shape != shape:
            raise ValueError(f"array {name} has shape {arrays[name].shape}, needed {shape}")
    for name in ordered:
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"array {name} holds NaN or infinity")
    with np.errstate(over="ignore", invalid="ignore"):
        largest = rank * float(np.abs(left @ factors.core).max()) * float(np.abs(right).max())
    if not largest < np.finfo(left.dtype).max:
        raise ValueError("the product of its factors is too large for their type")
    seen = arrays["seen_columns"]
    try:
        Entries.from_sparse(sparse.csr_array((np.zeros(len(seen)), seen, arrays["seen_starts"]), shape=(rows, columns)))
    except ValueError as error:
        raise ValueError(f"seen_starts and seen_columns are no rows of a {rows} x {columns} matrix: {error}") from error


def _check_numbers(numbers: dict[str, Any], columns: int) -> None:
    checked_count("n_iter", numbers["n_iter"])
    checked_number("mean", numbers["mean"])
    checked_number("regularization", numbers["regularization"], at_least=0.0)
    for name in ("range", "penalty"):
        if not isinstance(numbers[name], list) or len(numbers[name]) != 2:
            raise ValueError(f"{name} must be two numbers, got {numbers[name]!r}")
    low, high = (checked_number("range", one) for one in numbers["range"])
    if low > high:
        raise ValueError(f"range must ascend, got {low} and {high}")
    for one in numbers["penalty"]:
        checked_number("penalty", one, at_least=0.0)
    names = numbers["feature_names"]
    if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        raise ValueError(f"feature_names must be null or a list of texts, got {type(names).__name__}")
    if names is not None and len(names) != columns:
        raise ValueError(f"{len(names)} feature_names for {columns} columns")
