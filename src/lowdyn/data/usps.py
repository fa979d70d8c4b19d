"""USPS digits: text with a label and 256 values in [−1, 1] a line, or LIBSVM's form of it."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lowdyn.data.checks import Arrays, DataError, check_labels, reading

Fields = Callable[[list[str], str], list[str]]  # what stands in a line, and its place -> label and values

PIXELS, SIDE = 256, 16
_LONGEST = 8192  # characters of a line; 256 values of at most 12 with their indices take far less


def read_text(paths: Sequence[Path], *, most: int) -> Arrays:
    """Return the images and labels of a text file (gzipped if its name ends in .gz): label, then 256 values, a line."""
    return _read(paths[0], most, _plain_fields, first_label=0)


def read_libsvm(paths: Sequence[Path], *, most: int) -> Arrays:
    """Return the images and labels of LIBSVM's file (bzip2): a label from 1 to 10, then 1:value … 256:value, a line."""
    return _read(paths[0], most, _indexed_fields, first_label=1)


def _read(path: Path, most: int, fields: Fields, *, first_label: int) -> Arrays:
    """Return images as bytes, 0 for −1 and 255 for 1: at most 0.004 from the file's three decimals."""
    rows: list[NDArray[np.float64]] = []
    packed: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open}
    with reading(path), packed.get(path.suffix, open)(path, "rt", encoding="ascii") as lines:
        while line := lines.readline(_LONGEST):
            place = f"{path}, line {len(rows) + 1}"
            if len(rows) == most:
                raise DataError(f"{path}: more than {most} lines; fetch the file again")
            rows.append(_values(fields(line.split(), place), place))
    if not rows:
        raise DataError(f"{path}: no lines, needed 1 to {most}")
    table = np.array(rows)
    labels = check_labels(table[:, 0].astype(np.int64) - first_label, 10, str(path))
    images = np.rint((table[:, 1:] + 1) * 127.5).astype(np.uint8)
    return images.reshape(-1, SIDE, SIDE), labels


def _plain_fields(fields: list[str], place: str) -> list[str]:
    return fields


def _indexed_fields(fields: list[str], place: str) -> list[str]:
    indices, values = zip(*(field.split(":", 1) for field in fields[1:] if ":" in field), strict=True)
    if [int(index) for index in indices] != list(range(1, PIXELS + 1)):
        raise DataError(f"{place}: needed 1:value to {PIXELS}:value after the label")
    return [fields[0], *values]


def _values(fields: list[str], place: str) -> NDArray[np.float64]:
    if len(fields) != PIXELS + 1:
        raise DataError(f"{place}: found {len(fields)} fields, needed a label and {PIXELS} values")
    values = np.array(fields, dtype=np.float64)
    if values[0] != np.rint(values[0]) or not (np.abs(values[1:]) <= 1).all():  # NaN is refused too
        raise DataError(f"{place}: needed a whole label and values from -1 to 1")
    return values
