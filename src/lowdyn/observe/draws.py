"""Random draws undone: what looks at a model draws as it likes, and training goes on as if nothing had been drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def draws_undone(loader: Any = None, parameter: Tensor | None = None) -> Iterator[None]:
    """Put back, at the end, the global generators (torch's, NumPy's, Python's) and those that ``loader`` draws from.

    Of the accelerators' generators, the one of ``parameter``'s CUDA device. Each pass over a loader that shuffles
    therefore goes through the same order. Not to be held open in a Python generator, which may end late.

    >>> before = torch.get_rng_state()
    >>> with draws_undone():
    ...     _ = torch.rand(2)
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    devices = [parameter.device] if parameter is not None and parameter.is_cuda else []
    own = [(generator, generator.get_state()) for generator in generators_in(loader)]
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one, whoever draws from it
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
        for generator, state in own:
            generator.set_state(state)


def generators_in(loader: Any) -> list[torch.Generator]:
    """Return the generators that the order of ``loader``, such as a DataLoader, comes from, each once."""
    holders = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))]
    holders.append(getattr(holders[-1], "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
