"""*lowrank-mlp*: the last two hidden layers of a perceptron trained as pairs W = BA, on images of ten classes.

The lecture's network is 784-2000-2000-2000-10 on MNIST, FashionMNIST and USPS; of how it was trained the slides say
nothing. Here: Adam at 1e-3 falling linearly to 0, batches of 128, cross entropy, torch's default start, factors from
the truncated SVD of that start. Accuracies are those after the last epoch: nothing is chosen by them.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
import xarray as xr
from torch.nn.functional import cross_entropy

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.experiments.fitting import accuracy, denormals_as_zero
from lowdyn.lowrank.cost import step_costs
from lowdyn.lowrank.factorize import factorize
from lowdyn.lowrank.ranks import advise_ranks
from lowdyn.networks import MLP
from lowdyn.recipes import FirstBatches
from lowdyn.seeding import own_generator
from lowdyn.training import Minibatches, train

BATCH = 128
PAIRS = ("hidden2", "hidden3")
# Ranks of hidden2 and hidden3. The schedule is the slide's: K for the deepest, relaxed before it.
RANKS = {**{f"r = {rank}": (rank, rank) for rank in (1, 5, 10, 20, 40)}, "r = 20, 10": (20, 10)}
DENSE, SHALLOW, ADVISED = "dense", "dense, one hidden layer less", "advised"
VARIANTS = (DENSE, SHALLOW, *RANKS, ADVISED)


def run(*, data: tuple[ImageSet, ...], samples: int, generator: torch.Generator, **settings: Any) -> xr.Dataset:
    """Return what :func:`run_on` does for each data set of ``data``, (train, test) one after the other, over ``data``.

    Of each at most ``samples`` images are trained on. Every data set gets a generator of its own, seeded from
    ``generator``, so that one does not depend on another.
    """
    taken = [images.take(min(samples, len(images))) for images in data[::2]]
    runs = []
    for images, test in zip(taken, data[1::2], strict=True):
        own = own_generator(generator, below=2**62)
        runs.append(run_on(images, test, generator=own, **settings))
    joined = xr.concat(runs, dim="data", join="outer", combine_attrs="drop")
    return joined.assign_coords(data=[images.name for images in taken]).assign_attrs(described(*taken))


def run_on(
    images: ImageSet,
    test: ImageSet,
    *,
    variant: str,
    width: int,
    epochs: int,
    usps_epochs: int,
    lr: float,
    generator: torch.Generator,
    share: float = 0.9,
) -> xr.Dataset:
    """Return the training curve, the test accuracy after it, and what a step costs, of one ``variant`` of VARIANTS.

    ``rank`` (layer) are the ranks of hidden2 and hidden3, 0 where dense. "advised" are those that hold ``share`` of
    the energy of the moves of a dense twin, from the same start, in 100 steps of SGD with momentum 0.9 at 0.02 (the
    rule of *image-mlp*: the theory that the advice rests on is of gradient descent, not of Adam). What begins with
    ``dense_`` is of the dense network, timed in turn with this one.
    """
    tested = torch.from_numpy(test.features(statistics=images.statistics)), torch.from_numpy(test.labels)
    inputs, labels = torch.from_numpy(images.features()), torch.from_numpy(images.labels)
    batches = Minibatches(inputs, labels, BATCH, generator)
    sizes = (inputs.shape[1], width, width, width, images.num_classes)
    dense = MLP(sizes, generator=generator)
    model = MLP((*sizes[:2], *sizes[3:]), generator=generator) if variant == SHALLOW else copy.deepcopy(dense)
    ranks = dict.fromkeys(PAIRS, 0)
    if variant == ADVISED:
        ranks |= _advised(copy.deepcopy(dense), batches, share)
    elif variant in RANKS:
        ranks |= dict(zip(PAIRS, RANKS[variant], strict=True))
    if any(ranks.values()):
        factorize(model, {name: rank for name, rank in ranks.items() if rank})
    first = next(iter(batches))
    costs = step_costs({"own": model, "dense": dense}, lambda net: cross_entropy(net(first[0]), first[1]))

    epochs = usps_epochs if images.name == "usps" else epochs
    # Fused: one pass over 9.6 million parameters instead of one for every operation of Adam's.
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * len(batches))
    with denormals_as_zero():
        curve = train(model, batches, optimizer=optimizer, epochs=epochs, scheduler=scheduler)
    values = {
        "rank": ("layer", list(ranks.values())),
        "test_accuracy": accuracy(model, *tested),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dense_parameters": sum(parameter.numel() for parameter in dense.parameters()),
    }
    for key, cost in costs.items():
        prefix = "dense_" if key == "dense" else ""
        values |= {prefix + name: value for name, value in asdict(cost).items()}
    history = {name: ("epoch", curve[name].values) for name in ("loss", "accuracy")}
    coords = {"layer": list(PAIRS), "epoch": range(1, epochs + 1)}
    return xr.Dataset({**values, **history}, coords)


def _advised(model: MLP, batches: Minibatches, share: float) -> dict[str, int]:
    start = copy.deepcopy(model)
    warm_up = FirstBatches(batches, 100)
    train(model, warm_up, optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), epochs=1)
    return advise_ranks(model, start, layers="|".join(PAIRS), share=share).ranks


SMALL = [DENSE, "r = 1", "r = 10", ADVISED]
MIDDLE = [DENSE, "r = 1", "r = 10", "r = 20, 10", ADVISED]
LOWRANK_MLP = Experiment(
    "lowrank-mlp",
    run,
    {
        "smoke": Plan(grid(variant=SMALL, width=128, samples=1500, epochs=30, usps_epochs=30, lr=3e-3)),
        "quick": Plan(grid(variant=MIDDLE, width=256, samples=10_000, epochs=8, usps_epochs=12, lr=3e-3)),
        "paper": Plan(
            grid(variant=list(VARIANTS), width=2000, samples=60_000, epochs=20, usps_epochs=60, lr=1e-3), seeds=3
        ),
    },
    data=(
        ("mnist", "mnist/test", "fashion_mnist", "fashion_mnist/test", "usps", "usps/test"),
        ("digits", "digits/test"),
    ),
)
