"""When to look: every so many steps or ever more rarely, and no more often than a budget of time allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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
    of the training time, and training since the last look has earned one: so the first look, dearer than the others,
    is paid off before the second is taken, and what it was dearer by is no credit for looks in a row. With no
    ``share`` every look is affordable, and the accounts are only kept.
    """

    def __init__(self, share: float | None) -> None:
        if share is not None and checked_number("budget", share, below=1.0) <= 0:
            raise ValueError(f"budget must be a share of the training time above 0, got {share:g}")
        self.limit = share
        self.spent = 0.0
        self.trained = 0.0
        self.looks = 0
        self.recent: list[float] = []
        self.paid_at = 0.0  # training time at the last look

    @property
    def share(self) -> float:
        """Seconds spent over seconds trained; infinite before any training."""
        return self.spent / self.trained if self.trained > 0 else math.inf

    def pay(self, seconds: float) -> None:
        """Enter the cost of a look."""
        self.spent += seconds
        self.looks += 1
        self.paid_at = self.trained
        # The first look takes the references; it says little of what the others cost.
        self.recent = [seconds] if self.looks <= 2 else [self.recent[-1], seconds]

    def waiting(self, steps: int) -> int:
        """Return how many more steps to train, at the pace of the ``steps`` so far, before a look is affordable."""
        if self.limit is None:
            return 0
        cost = max(self.recent, default=0.0)
        missing = max(self.spent + cost, cost + self.limit * self.paid_at) / self.limit - self.trained
        if missing <= 1e-9 * self.trained:
            return 0
        # Rounded down, and no further than twice the steps so far: the pace may change, as after a compilation.
        pace = steps / self.trained if self.trained > 0 else 0.0
        return min(max(1, int(missing * pace + 1e-9)), max(1, steps))

    def state(self) -> dict[str, Any]:
        """The accounts as plain numbers."""
        names = ("spent", "trained", "looks", "recent", "paid_at")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the accounts that :meth:`state` returned."""
        self.spent, self.trained = float(state["spent"]), float(state["trained"])
        self.paid_at = float(state["paid_at"])
        self.looks, self.recent = int(state["looks"]), [float(seconds) for seconds in state["recent"]]
