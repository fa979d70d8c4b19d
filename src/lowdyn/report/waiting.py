"""What a terminal shows while a command reads a file or fits a model; elsewhere nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def reading(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a file has been read: what is yielded takes the bytes done and the bytes in all."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def fitting() -> Iterator[Callable[[int, float], None]]:
    """Show how a fit gets on: what is yielded takes the iterations done and the validation error, NaN without one."""
    with Console(stderr=True).status("fitting") as status:

        def show(iteration: int, error: float) -> None:
            known = "all ratings" if math.isnan(error) else f"validation RMSE {error:.4f}"
            status.update(f"fitting: iteration {iteration}, {known}")

        yield show
