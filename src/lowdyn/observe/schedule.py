"""When to look: every so many steps or ever more rarely, and no more often than a budget of time allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from lowdyn.arguments import checked_count, checked_number


class Schedule(Protocol):
    """Says at which steps to look."""

    def due(self, step: int) -> bool:
        """Whether ``step``, at least 1, is one to look at."""
        ...


@dataclass(frozen=True)
class Every:
    """Every ``steps`` steps.

    >>> [step for step in range(1, 10) if Every(3).due(step)]
    [3, 6, 9]
    """

    steps: int

    def __post_init__(self) -> None:
        checked_count("every", self.steps, at_least=1)

    def due(self, step: int) -> bool:
        """Whether ``step`` is a multiple."""
        return step % self.steps == 0


@dataclass(frozen=True)
class LogSpaced:
    """About ``per_decade`` steps in every factor of ten: much happens at the start, and little happens fast later.

    >>> [step for step in range(1, 101) if LogSpaced(4).due(step)]
    [1, 2, 3, 6, 10, 18, 32, 56, 100]
    """

    per_decade: int = 8

    def __post_init__(self) -> None:
        checked_count("per_decade", self.per_decade, at_least=1)

    def due(self, step: int) -> bool:
        """Whether ``step`` is the rounded value of a power of 10^(1/per_decade)."""
        nearest = round(self.per_decade * math.log10(step))
        return any(round(10 ** (place / self.per_decade)) == step for place in range(nearest - 1, nearest + 2))


class Budget:
    """Accounts of time: what was spent on looking, and what training took meanwhile, in seconds.

    A look is affordable when all looks so far and one more like the dearest of the last two come to at most ``share``
    of the training time; so the first look, dearer than the others, is paid off before the second is taken. With no
    ``share`` every look is, and the accounts are only kept.
    """

    def __init__(self, share: float | None) -> None:
        if share is not None and checked_number("budget", share, below=1.0) <= 0:
            raise ValueError(f"budget must be a share of the training time above 0, got {share:g}")
        self.limit = share
        self.spent = 0.0
        self.trained = 0.0
        self.last: list[float] = []

    @property
    def share(self) -> float:
        """Seconds spent over seconds trained; infinite before any training."""
        return self.spent / self.trained if self.trained > 0 else math.inf

    def pay(self, seconds: float) -> None:
        """Enter the cost of a look."""
        self.spent += seconds
        # What the first look costs says nothing of the others: it takes the references, and warms up.
        self.last = [*self.last[-1:], seconds] if len(self.last) > 1 or self.last[:1] != [0.0] else [seconds]

    def waiting(self, steps: int) -> int:
        """Return how many more steps to train, at the pace of the last ``steps``, before a look is affordable."""
        if self.limit is None:
            return 0
        missing = (self.spent + max(self.last, default=0.0)) / self.limit - self.trained
        return 0 if missing <= 0 else max(1, math.ceil(missing * steps / self.trained)) if self.trained > 0 else 1
