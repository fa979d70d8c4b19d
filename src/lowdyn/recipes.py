"""Recipes: what several parts of the library do together, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowdyn.arguments import checked_count
from lowdyn.lowrank.factorize import FactorizationTable, factorize
from lowdyn.lowrank.ranks import RankAdvice, advise_ranks
from lowdyn.observe import Spectra, Tracker
from lowdyn.training import Loss, train

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class LowRankTraining:
    """What :func:`train_low_rank` returns: the model, trained; what was advised and done; the trajectories.

    ``warm_up`` is what the Tracker saw of the dense model, with its spectra; ``curve`` has ``loss`` and ``accuracy``
    over the ``step`` of the whole run, and in ``factorized_at`` the step after which layers were pairs.
    """

    model: nn.Module
    advice: RankAdvice
    table: FactorizationTable
    warm_up: xr.Dataset
    curve: xr.Dataset


@dataclass(frozen=True)
class FirstBatches:
    """The first ``count`` batches of a ``loader``, gone through again and again if it has fewer.

    >>> list(FirstBatches(range(3), 5))
    [0, 1, 2, 0, 1]
    """

    loader: Iterable[Any]
    count: int

    def __post_init__(self) -> None:
        checked_count("count", self.count, at_least=1)

    def __iter__(self) -> Iterator[Any]:
        left = self.count
        while left:
            before = left
            for batch in islice(self.loader, left):
                yield batch
                left -= 1
            if left == before:  # a loader that gives nothing, or gave all it had
                return


def train_low_rank(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: MakeOptimizer,
    epochs: int,
    warm_up_optimizer: MakeOptimizer,
    warm_up_steps: int = 100,
    layers: str | None = None,
    share: float = 0.9,
    keep_first_last: bool = True,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    loss: Loss = cross_entropy,
    accelerator: Any | None = None,
) -> LowRankTraining:
    """Train ``model`` dense under a Tracker, factorize it at the ranks that learning used, and train it on, in place.

    The steps are :func:`lowdyn.train` for ``warm_up_steps`` updates with ``warm_up_optimizer``,
    :func:`lowdyn.advise_ranks` against the start, :func:`lowdyn.factorize` by that advice, which keeps what the weights
    do on the inputs that learning used, and :func:`lowdyn.train` for ``epochs`` with ``optimizer``. Optimizers are
    given as functions of the parameters, since the second can be built only when the pairs are there; ``scheduler`` is
    a function of the second. Let the warm-up be plain gradient descent, with momentum if you like: that is what the
    theory behind the advice is about. The others are those of the functions named.

    ValueError, with the model trained so far, when no layer is worth a pair at the ranks advised.

    >>> from functools import partial
    >>> from lowdyn.networks import MLP
    >>> from lowdyn.training import Minibatches
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(256, 20, generator=generator)
    >>> batches = Minibatches(x, (x[:, 0] > 0).long(), 32, generator)
    >>> run = train_low_rank(
    ...     MLP((20, 64, 64, 2), generator=generator),
    ...     batches,
    ...     warm_up_optimizer=partial(torch.optim.SGD, lr=0.1),
    ...     optimizer=partial(torch.optim.Adam, lr=1e-2),
    ...     warm_up_steps=10,
    ...     epochs=5,
    ... )
    >>> run.table.ranks == run.advice.ranks, run.curve.attrs["factorized_at"], bool(run.curve["accuracy"][-1] > 0.95)
    (True, 10, True)
    """
    checked_count("epochs", epochs, at_least=1)
    tracker = Tracker(model, Spectra(layers=layers), every=warm_up_steps)
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    dense = train(
        model,
        FirstBatches(loader, warm_up_steps),
        optimizer=warm_up_optimizer(model.parameters()),
        epochs=1,
        loss=loss,
        tracker=tracker,
        accelerator=accelerator,
    )
    # By the start, not by the trajectory: a Tracker follows a few directions, and advice may need more.
    advice = advise_ranks(model, start, layers=layers, share=share, keep_first_last=keep_first_last)
    if not advice.ranks:
        raise ValueError(f"no layer is worth a pair at the ranks advised:\n{advice}")
    table = factorize(model, advice)
    second = optimizer(model.parameters())
    low_rank = train(
        model,
        loader,
        optimizer=second,
        epochs=epochs,
        loss=loss,
        scheduler=None if scheduler is None else scheduler(second),
        accelerator=accelerator,
    )
    at = int(dense["step"][-1])
    low_rank = low_rank.assign_coords(step=low_rank["step"] + at)
    curve = xr.concat([dense, low_rank], dim="step", combine_attrs="override").assign_attrs(
        epochs=epochs, factorized_at=at
    )
    return LowRankTraining(model, advice, table, tracker.trajectory, curve)
