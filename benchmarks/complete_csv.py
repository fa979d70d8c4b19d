"""`lowdyn complete` on a CSV file of ten million ratings: what memory the command comes to.

Ratings are made up: 70 000 users and 10 000 items of two tastes, noise, steps of a half from 0.5 to 5. The file is
about 170 MB in a temporary folder. The number of ratings may be given as argument.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import finish, report

USERS, ITEMS, RATINGS, PAIRS = 70_000, 10_000, 10_000_000, 100_000
BLOCK = 200_000  # lines written at once, so that this process stays small


def write_ratings(path: Path, count: int, rng: np.random.Generator) -> None:
    """Write ``count`` ratings of different pairs: each user rates items some way apart, from one of its own on."""
    users, items = rng.normal(size=(USERS, 2)), rng.normal(size=(ITEMS, 2))
    first = rng.integers(0, ITEMS, USERS)
    with path.open("w") as file:
        file.write("user,item,rating\n")
        for start in range(0, count, BLOCK):
            place = np.arange(start, min(start + BLOCK, count))
            rows, turn = place % USERS, place // USERS
            columns = (first[rows] + 67 * turn) % ITEMS
            values = 3 + 0.6 * (users[rows] * items[columns]).sum(axis=1) + 0.7 * rng.normal(size=len(place))
            values = np.clip(np.round(2 * values) / 2, 0.5, 5)
            file.writelines(f"u{i},i{j},{x}\n" for i, j, x in zip(rows, columns, values, strict=True))


def write_pairs(path: Path, rng: np.random.Generator) -> None:
    """Write the pairs to predict, known ones or not."""
    rows, columns = rng.integers(0, USERS, PAIRS), rng.integers(0, ITEMS, PAIRS)
    lines = (f"u{i},i{j}\n" for i, j in zip(rows, columns, strict=True))
    path.write_text("user,item\n" + "".join(lines))


def main(count: int) -> list[bool]:
    """Return whether the command stays below 2 GiB, some 200 bytes a rating."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        ratings, pairs, out = (Path(folder, f"{name}.csv") for name in ("ratings", "pairs", "out"))
        write_ratings(ratings, count, rng)
        write_pairs(pairs, rng)
        command = [sys.executable, "-m", "lowdyn.cli", "complete", ratings, "--predict", pairs, "--out", out]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - began
        with out.open() as file:
            assert sum(1 for _ in file) == PAIRS + 1
        size = ratings.stat().st_size / 2**20
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"     {count} ratings, {size:.0f} MiB of text: {seconds:.0f} s, peak {peak:.2f} GiB")
    what = f"{count} ratings of a CSV file, peak memory"
    return [report(what, "2 GiB", peak / 2, 1, f"memory of `lowdyn complete`, {count} ratings of a CSV file")]


if __name__ == "__main__":
    finish(main(int(sys.argv[1]) if sys.argv[1:] else RATINGS))
