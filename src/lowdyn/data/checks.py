"""What is refused in a data file, and how the refusal reads: the file, what was found, what was needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images and labels, as every reader returns them."""

_BLOCK = 1 << 20  # zipfile joins the pieces of one read, so one huge read would copy quadratically


class Stream(Protocol):
    """Whatever bytes can be read from: a file, a gzip stream, a member of an archive."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""


class DataError(ValueError):
    """A data file is there but wrong; the message names the file, what was found and what was needed."""


class DataMissing(DataError):
    """A data set is not there; one line with the folder searched, the file wanted and how to get it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever damage a decoder meets inside the block into a DataError that names ``path``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # On damaged bytes gzip, tarfile, zipfile, lzma and numpy's header parser raise a dozen types, even
        # SyntaxError, and document few of them: a list would leak.
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        raise DataError(f"{path}: cannot be read ({reason}); fetch the file again") from error


def one_line(error: Exception) -> str:
    """Return the text of ``error`` without its line breaks."""
    return " ".join(str(error).split())


def fill(array: NDArray[Any], stream: Stream, name: str) -> None:
    """Fill the contiguous ``array`` with the rest of ``stream``; DataError if that is too short or too long.

    At most one byte more than ``array`` holds is decompressed, so a bomb never unfolds.
    """
    target = array.reshape(-1).view(np.uint8).data
    done = 0
    while block := stream.read(min(_BLOCK, len(target) - done)):
        target[done : done + len(block)] = block
        done += len(block)
    # The one byte more also makes gzip reach its end, where the checksum is compared.
    if done < len(target) or stream.read(1):
        found = f"only {done}" if done < len(target) else "more"
        raise DataError(f"{name}: found {found}, needed {len(target)} bytes of data; fetch the file again")


def check_labels(labels: NDArray[np.integer[Any]], num_classes: int, name: str) -> NDArray[np.int64]:
    """Return ``labels`` as int64; DataError unless all of them lie in 0 … num_classes - 1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"{name}: labels from {low} to {high}, needed 0 to {num_classes - 1}")
    return labels.astype(np.int64)
