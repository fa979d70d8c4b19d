"""Seeds and generators of their own, for parts that shall not depend on one another, and for other libraries."""

from __future__ import annotations

import torch


def drawn_seed(generator: torch.Generator, *, below: int = 2**31) -> int:
    """Draw a seed from ``generator``, of 31 bits where libraries take no more.

    >>> drawn_seed(torch.Generator().manual_seed(0)) == drawn_seed(torch.Generator().manual_seed(0)) < 2**31
    True
    """
    return int(torch.randint(below, (), generator=generator))


def own_generator(generator: torch.Generator, *, below: int = 2**31) -> torch.Generator:
    """Return a generator seeded from ``generator``.

    >>> first, second = (own_generator(parent) for parent in 2 * [torch.Generator().manual_seed(0)])
    >>> first.initial_seed() != second.initial_seed()
    True
    """
    return torch.Generator().manual_seed(drawn_seed(generator, below=below))
