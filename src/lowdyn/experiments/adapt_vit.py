"""*adapt-vit*: a pretrained vision transformer learns classes it has not seen, in full or by adapters.

The lecture adapts ViT-B/16, pretrained on ImageNet-21k, to CIFAR-10 and CIFAR-100. That is the paper scale, from a
checkpoint in the data folder. Otherwise a small ViT is pretrained here: on Fashion-MNIST for MNIST, or, where there is
no data folder, on the first five of scikit-learn's digits for the last five. Adapters go on queries and values, and
the head is trained in full. Every method gets the best of three rates on training images that are set aside. What a
small rank costs is seen beside a LoRA of a large one, of every layer, which trains nearly as much as full fine-tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowdyn.data import ImageSet, PretrainedViT
from lowdyn.experiments.adaptation import Adaptation, adapt
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.experiments.fitting import accuracy
from lowdyn.experiments.pretrained import PIXELS, Enlarged
from lowdyn.networks import SmallViT
from lowdyn.networks.pretrained import pretrained_vit
from lowdyn.seeding import drawn_seed, own_generator
from lowdyn.training import Minibatches, train

WIDTH, DEPTH, BATCH = 64, 4, 64
METHODS = ("full", "lora", "adalora", "deep_lora")
WIDE = "wide_lora"
LAYERS = ["patches", "query", "key", "value", "mixed", "expand", "contract"]  # of the small network, all but the head
# Of the small network: adapters want a higher rate than full fine-tuning, each its own.
RATES = {
    "full": (1e-3, 3e-3, 1e-2),
    "lora": (1e-2, 3e-2, 1e-1),
    "adalora": (3e-2, 1e-1, 3e-1),
    "deep_lora": (3e-2, 1e-1, 3e-1),
    WIDE: (1e-3, 3e-3, 1e-2),
}
CHECKPOINT_RATES = dict.fromkeys(METHODS, (1e-4, 1e-3, 5e-3))


@dataclass(frozen=True)
class _Base:
    """A network to adapt: ``build(classes, generator)`` gives it a new head."""

    build: Callable[[int, torch.Generator], nn.Module]
    source: ImageSet | PretrainedViT  # what it was pretrained on, or the file of its weights
    statistics: tuple[Any, Any]  # mean and deviation by which its images are shifted and scaled
    rates: Mapping[str, tuple[float, ...]]  # of every method
    reached: float  # its accuracy on what it was pretrained on


class _Schedule:
    """A cosine to zero, then what the way of adapting does after a step: `train` calls it once an update."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, adaptation: Adaptation) -> None:
        self.rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        self.adaptation, self.steps = adaptation, 0

    def step(self) -> None:
        self.rates.step()
        self.steps += 1
        self.adaptation.after_step(self.steps)


def run(
    *,
    data: tuple[Any, ...],
    rank: int,
    adapted: int,
    steps: int,
    tested: int,
    generator: torch.Generator,
    pretrained: int = 0,
    pretraining_steps: int = 0,
    wide: int | None = None,
    lr: float | None = None,
) -> xr.Dataset:
    """Return over ``tuning`` the test ``accuracy``, the number of ``trainable`` parameters and the ``rate``.

    ``data`` are images to pretrain on, for ``pretraining_steps`` on ``pretrained`` of them, to adapt to and to test on;
    or (train, test), of which one half of the classes stands for the first. Or pairs (train, test) and last a file of
    pretrained weights. ``steps`` on ``adapted`` images follow, a fifth of which is set aside for the choice of rates;
    ``tested`` at most judge. With ``wide`` a LoRA of that rank, of every layer of the small network, joins the others.
    With ``lr`` every method takes that rate and none is chosen. All is over ``data``, as is ``parameters``, the
    network's number; ``pretraining_accuracy`` is what it reached before, NaN of a file.
    """
    base, pairs = _parts(data, pretrained, pretraining_steps, generator)
    pairs = [(target.take(min(adapted, len(target))), test.take(min(tested, len(test)))) for target, test in pairs]
    ways = {method: (method, rank, ["query", "value"]) for method in METHODS}
    if wide is not None:
        ways[WIDE] = ("lora", wide, LAYERS)
    rates = base.rates if lr is None else dict.fromkeys(ways, (lr,))
    rows = []
    for target, test in pairs:
        own = own_generator(generator)
        rows.append(_adapted_to(base, target, test, ways, steps, rates, own))
    targets = [target for target, _ in pairs]
    joined = xr.concat(rows, dim="data").assign_coords(data=[target.name for target in targets])
    joined = joined.assign(pretraining_accuracy=base.reached)
    return joined.assign_attrs(described(base.source, *targets), pretrained_on=base.source.name)


def _adapted_to(
    base: _Base,
    target: ImageSet,
    test: ImageSet,
    ways: Mapping[str, tuple[str, int, list[str]]],
    steps: int,
    rates: Mapping[str, tuple[float, ...]],
    generator: torch.Generator,
) -> xr.Dataset:
    """Return what every way (method, rank, layers) reaches on ``test`` after ``steps`` on 4/5 of ``target``."""
    model = base.build(target.num_classes, generator)
    inputs, labels = _tensors(target, base.statistics)
    order = torch.randperm(len(target), generator=generator)
    kept = len(target) - len(target) // 5
    learn, choose = order[:kept], order[kept:]
    seed, rows = drawn_seed(generator), []
    for name, way in ways.items():
        trials = []
        for rate in rates[name]:
            own = torch.Generator().manual_seed(seed)  # the same order and start for every method and rate
            batches = Minibatches(inputs[learn], labels[learn], BATCH, own)
            epochs = -(-steps // len(batches))
            adaptation = _adapted(model, *way, steps=epochs * len(batches), generator=own)
            _train(adaptation, batches, rate, epochs)
            trials.append((accuracy(adaptation.model, inputs[choose], labels[choose]), -rate, adaptation))
        _, negative, best = max(trials, key=lambda one: one[:2])
        rows.append((accuracy(best.model, *_tensors(test, base.statistics)), best.trainable, -negative))
    reached, trainable, chosen = np.array(rows).T
    return xr.Dataset(
        {
            "accuracy": ("tuning", reached),
            "trainable": ("tuning", trainable),
            "rate": ("tuning", chosen),
            "parameters": sum(one.numel() for one in model.parameters()),
        },
        coords={"tuning": list(ways)},
    )


def _parts(
    data: tuple[Any, ...], pretrained: int, steps: int, generator: torch.Generator
) -> tuple[_Base, list[tuple[ImageSet, ImageSet]]]:
    """Return the network to adapt, and pairs (train, test) of images to adapt it to."""
    if isinstance(data[-1], PretrainedViT):
        *images, checkpoint = data

        def read(classes: int, generator: torch.Generator) -> nn.Module:
            return Enlarged(pretrained_vit(checkpoint.path, classes, generator=generator))

        base = _Base(read, checkpoint, PIXELS, CHECKPOINT_RATES, float("nan"))
        return base, list(zip(images[::2], images[1::2], strict=True))
    if len(data) == 3:
        source, target, test = data
    else:
        half = data[0].num_classes // 2
        source, target = (_classes(data[0], part) for part in (slice(None, half), slice(half, None)))
        test = _classes(data[1], slice(half, None))
    return _pretrained(source.take(min(pretrained, len(source))), steps, generator), [(target, test)]


def _classes(images: ImageSet, part: slice) -> ImageSet:
    names = images.class_names[part]
    first = images.class_names.index(names[0])
    held = (images.labels >= first) & (images.labels < first + len(names))
    return replace(images, images=images.images[held], labels=images.labels[held] - first, class_names=names)


def _tensors(images: ImageSet, statistics: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images.features(statistics=statistics)), torch.from_numpy(images.labels)


def _pretrained(source: ImageSet, steps: int, generator: torch.Generator) -> _Base:
    """Return a small ViT that has learnt ``source``."""
    height, width = source.images.shape[1:3]
    image = (height, width, source.images[0].size // (height * width))
    model = SmallViT(image, source.num_classes, width=WIDTH, depth=DEPTH, patch=height // 4, generator=generator)
    inputs, labels = _tensors(source, source.statistics)
    batches = Minibatches(inputs, labels, BATCH, generator)
    everything = Adaptation(model, lambda lr: [{"params": list(model.parameters()), "lr": lr}])
    _train(everything, batches, 2e-3, -(-steps // len(batches)))

    def build(classes: int, generator: torch.Generator) -> nn.Module:
        again = SmallViT(image, classes, width=WIDTH, depth=DEPTH, patch=height // 4, generator=generator)
        learnt = {name: value for name, value in model.state_dict().items() if not name.startswith("output.")}
        again.load_state_dict(learnt, strict=False)
        return again

    return _Base(build, source, source.statistics, RATES, accuracy(model, inputs, labels))


def _adapted(
    model: nn.Module, method: str, rank: int, layers: list[str], *, steps: int, generator: torch.Generator
) -> Adaptation:
    return adapt(
        copy.deepcopy(model), method, rank=rank, targets=layers, generator=generator, steps=steps, head=["output"]
    )


def _train(adaptation: Adaptation, batches: Minibatches, lr: float, epochs: int) -> None:
    optimizer = torch.optim.AdamW(adaptation.groups(lr), weight_decay=0.0)
    schedule = _Schedule(optimizer, epochs * len(batches), adaptation)
    train(
        adaptation.model,
        batches,
        optimizer=optimizer,
        epochs=epochs,
        loss=lambda outputs, labels: cross_entropy(outputs, labels) + adaptation.penalty(),
        scheduler=schedule,
    )


ADAPT_VIT = Experiment(
    "adapt-vit",
    run,
    {
        "smoke": Plan(grid(rank=2, pretrained=700, pretraining_steps=100, adapted=300, steps=30, tested=200, lr=3e-3)),
        "quick": Plan(
            grid(rank=2, pretrained=6000, pretraining_steps=480, adapted=1000, steps=160, tested=2000, wide=32), seeds=3
        ),
        "paper": Plan(
            grid(rank=8, adapted=50_000, steps=3000, tested=10_000),
            seeds=3,
            data=(("cifar10/train", "cifar10/test", "cifar100/train", "cifar100/test", "vit_b_16"),),
        ),
    },
    data=(("fashion_mnist/train", "mnist/train", "mnist/test"), ("digits/train", "digits/test")),
)
