"""The one place that validates arguments: every refusal says what was passed and what was needed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def checked_count(name: str, value: Any, *, at_least: int = 0) -> int:
    """Return ``value`` as an int; TypeError unless it is a whole number, ValueError below ``at_least``.

    >>> checked_count("depth", 3, at_least=1)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return int(value)


def checked_number(name: str, value: Any, *, at_least: float = -math.inf, below: float = math.inf) -> float:
    """Return ``value`` as a finite float in [at_least, below); TypeError or ValueError otherwise.

    >>> checked_number("momentum", 0.9, at_least=0.0, below=1.0)
    0.9
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least:g}, got {value}")
    if value >= below:
        raise ValueError(f"{name} must be below {below:g}, got {value}")
    return value


def checked_flag(name: str, value: Any) -> bool:
    """Return ``value`` as a bool; TypeError unless it is True or False, NumPy's included.

    >>> checked_flag("nesterov", np.True_)
    True
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def checked_choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``allowed``; ValueError with the list otherwise.

    >>> checked_choice("reduction", "sum", ("mean", "sum"))
    'sum'
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def checked_matrix(name: str, value: Any, *, finite: bool = True) -> Tensor:
    """Return ``value`` as a finite floating tensor of shape (…, rows, columns).

    A tensor is returned as it is, detached; a NumPy array or nested list is copied. Whole numbers become
    float64. TypeError for what is not numeric or is complex, ValueError for fewer than two dimensions, an
    empty matrix, NaN or infinity (unless ``finite`` is False).

    >>> checked_matrix("target", [[1.0, 2.0]]).shape
    torch.Size([1, 2])
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        array = np.array(value)
        if array.dtype == object or array.dtype.kind not in "biufc":
            raise TypeError(f"{name} must be a matrix of numbers, got {type(value).__name__}")
        tensor = torch.from_numpy(array)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    if tensor.ndim < 2:
        raise ValueError(f"{name} must be a matrix (rows, columns), got shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(tensor.shape)}")
    if finite and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} holds {bad} values that are NaN or infinite out of {tensor.numel()}")
    return tensor


def checked_generator(value: Any) -> torch.Generator:
    """Return ``value`` if it is a torch.Generator; TypeError otherwise (the global one is never used).

    >>> checked_generator(torch.Generator().manual_seed(0)).initial_seed()
    0
    """
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {value!r}; pass torch.Generator().manual_seed(seed)")
    return value


def checked_indices(name: str, value: Any) -> NDArray[np.int64]:
    """Return ``value`` as indices (n,), a single number as one; TypeError for what is not whole, ValueError below 0.

    >>> checked_indices("rows", [3, 0])
    array([3, 0])
    """
    array = np.atleast_1d(np.asarray(value))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{name} must be whole numbers in one dimension, got {array.dtype} of shape {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must not be negative, got {array.min()} at position {int(array.argmin())}")
    return array.astype(np.int64)
