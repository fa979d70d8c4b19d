"""Ratings in a CSV file completed: read once, fitted, and predictions written as the pairs are read."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lowdyn.files import replace_atomically
from lowdyn.recovery import DeepMatrixCompletion, ratings_matrix
from lowdyn.recovery.ratings import RatingError

Advance = Callable[[int, int], None]  # bytes read, bytes in all
_BLOCK = 1 << 16  # lines between two reports of progress, and pairs predicted at once


class CsvError(ValueError):
    """A CSV file is not what was asked for; the message names file and line."""


def read_columns(
    path: Path, names: Sequence[str], delimiter: str = ",", advance: Advance = lambda done, total: None
) -> Iterator[tuple[int, list[str]]]:
    """Go through the lines of a CSV file (UTF-8, names in its first line): (line number, the columns ``names``).

    Empty lines are passed over. CsvError, with the line's number, for a name that is not there (those present are
    listed) or there twice, a line with more or fewer fields than the first, or text that is not UTF-8.
    """
    total = path.stat().st_size
    with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in names if name not in header]
            if missing:
                present = ", ".join(header) or "none"
                raise CsvError(f"{path}, line 1: no column {', '.join(missing)}; the columns are {present}")
            if twice := [name for name in names if header.count(name) > 1]:
                raise CsvError(
                    f"{path}, line 1: column {', '.join(twice)} stands there more than once; rename the others"
                )
            places = [header.index(name) for name in names]
            for count, fields in enumerate(reader):
                if count % _BLOCK == 0:
                    advance(raw.tell(), total)
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise CsvError(f"{path}, line {reader.line_num}: {len(fields)} fields, needed {len(header)}")
                yield reader.line_num, [fields[place] for place in places]
        except csv.Error as error:
            raise CsvError(f"{path}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            # The decoder reads ahead of the lines, so the line is near, not here.
            raise CsvError(f"{path}, after line {reader.line_num}: not UTF-8 text ({error.reason})") from error
    advance(total, total)


def read_ratings(
    path: Path, names: Sequence[str], delimiter: str = ",", advance: Advance = lambda done, total: None
) -> tuple[Any, Any, Any]:
    """Return (matrix, row ids, column ids) of the columns ``names`` = (user, item, rating); ids are text.

    Memory is that of the matrix and of the ids, not of the file. CsvError with the line's number for a rating that
    is no finite number, an empty id or a pair rated twice, and as :func:`read_columns`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "ratings.csv")
    ...     _ = file.write_text("user,film,stars\\nann,Alien,5\\nbob,Alien,3\\n")
    ...     matrix, users, films = read_ratings(file, ("user", "film", "stars"))
    >>> matrix.toarray().tolist(), users.tolist(), films.tolist()
    ([[5.0], [3.0]], ['ann', 'bob'], ['Alien'])
    """

    def triples() -> Iterator[tuple[str | None, str | None, str]]:
        for _, (row, column, value) in read_columns(path, names, delimiter, advance):
            yield row or None, column or None, value

    try:
        return ratings_matrix(triples())
    except RatingError as error:
        line = next(islice(read_columns(path, names, delimiter), error.position, None))[0]
        raise CsvError(f"{path}, line {line}: {error.reason}") from error


def predict_pairs(
    model: DeepMatrixCompletion,
    ids: tuple[Any, Any],
    pairs: Path,
    names: Sequence[str],
    out: Path,
    delimiter: str = ",",
    advance: Advance = lambda done, total: None,
) -> int:
    """Write the pairs of the CSV file ``pairs``, each with its prediction, to ``out``; return how many.

    Columns of ``out``: those of ``names`` = (user, item), then "prediction". An id that the fit did not see is
    predicted from the biases of the other. ``out`` is replaced when all is written, or stays what it was.

    >>> import tempfile
    >>> matrix, users, films = ratings_matrix([("ann", "Alien", 4.0), ("bob", "Brazil", 4.0)])
    >>> model = DeepMatrixCompletion(rank=1).fit(matrix)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pairs, out = Path(folder, "pairs.csv"), Path(folder, "out.csv")
    ...     _ = pairs.write_text("user,film\\nann,Brazil\\neve,Alien\\n")
    ...     predict_pairs(model, (users, films), pairs, ("user", "film"), out)
    ...     out.read_text().split()
    2
    ['user,film,prediction', 'ann,Brazil,4', 'eve,Alien,4']
    """
    places = [{one: place for place, one in enumerate(known.tolist())} for known in ids]
    written = 0

    def content() -> Iterator[bytes]:
        nonlocal written
        yield _lines([[*names, "prediction"]], delimiter)
        lines = read_columns(pairs, names, delimiter, advance)
        while block := [fields for _, fields in islice(lines, _BLOCK)]:
            # One beyond the last stands for all that were not there.
            rows, columns = (
                np.array([known.get(one, len(known)) for one in column], dtype=np.int64)
                for known, column in zip(places, zip(*block, strict=True), strict=True)
            )
            predictions = model.predict_entries(rows, columns).tolist()
            yield _lines(
                ([*fields, format(value, ".6g")] for fields, value in zip(block, predictions, strict=True)), delimiter
            )
            written += len(block)

    replace_atomically(out, content())
    return written


def _lines(rows: Any, delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")
