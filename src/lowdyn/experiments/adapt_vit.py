"""*adapt-vit*: a pretrained vision transformer learns classes it has not seen, in full or by adapters.

The lecture adapts ViT-B/16, pretrained on ImageNet-21k, to CIFAR-10 and CIFAR-100. That is the paper scale, from a
checkpoint on this machine. Otherwise a small ViT is pretrained here: on Fashion-MNIST for MNIST, or, where there is
no data folder, on the first five of scikit-learn's digits for the last five. Adapters go on queries and values, and
the head is trained in full. Every method gets the best of the same rates on training images that are set aside.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowdyn.data import DataMissing, ImageSet
from lowdyn.experiments.adaptation import Adaptation, adapt, forked
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.training import Minibatches, train

WIDTH, BATCH = 64, 64
METHODS = ("full", "lora", "adalora", "deep_lora")
RATES: tuple[float, ...] = (
    1e-3,
    3e-3,
    1e-2,
    3e-2,
)  # of the small network: full fine-tuning wants a lower one than adapters
CHECKPOINT = "LOWDYN_VIT"  # environment variable: folder with config.json and model.safetensors
CHECKPOINT_RATES: tuple[float, ...] = (1e-4, 1e-3, 5e-3)


class Classifier(nn.Module):
    """A transformers ViT as a function of images (n, channels, height, width) to logits, resized to what it takes."""

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes)."""
        if images.shape[-1] != self.size:
            images = nn.functional.interpolate(images, size=self.size, mode="bilinear")
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


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
    data: tuple[ImageSet, ...],
    rank: int,
    pretrained: int,
    pretraining_steps: int,
    adapted: int,
    steps: int,
    tested: int,
    generator: torch.Generator,
    lr: float | None = None,
) -> xr.Dataset:
    """Return over ``tuning`` the test ``accuracy``, the number of ``trainable`` parameters and the ``rate``.

    ``pretraining_steps`` on ``pretrained`` images come first (0: a checkpoint is read instead), then ``steps`` on
    ``adapted`` ones, a fifth of which is set aside for the choice of rates; ``tested`` at most judge.
    With ``lr`` every method takes that rate and none is chosen.
    ``parameters`` is the network's number of parameters, ``pretraining_accuracy`` what it reached before.
    """
    source, target, test = _parts(data, adapted, tested)
    if pretraining_steps:
        source = source.take(min(pretrained, len(source)))
        model, reached = _pretrained(source, target.num_classes, pretraining_steps, generator)
        statistics, rates = source.statistics, RATES
    else:
        model, reached = _checkpoint(target.num_classes, generator), float("nan")
        statistics, rates = (np.full(3, 0.5), np.full(3, 0.5)), CHECKPOINT_RATES  # what ViT-B/16 was trained with
    kept = len(target) - len(target) // 5
    inputs, labels = _tensors(target, statistics)
    order = torch.randperm(len(target), generator=generator)
    learn, choose = order[:kept], order[kept:]
    test_inputs, test_labels = _tensors(test, statistics)
    seed, rows = int(torch.randint(2**31, (), generator=generator)), []
    for method in METHODS:
        trials = []
        for rate in rates if lr is None else [lr]:
            own = torch.Generator().manual_seed(seed)  # the same order and start for every method and rate
            batches = Minibatches(inputs[learn], labels[learn], BATCH, own)
            epochs = -(-steps // len(batches))
            adaptation = _adapted(model, method, rank, epochs * len(batches), own)
            _train(adaptation, batches, rate, epochs)
            trials.append((_accuracy(adaptation.model, inputs[choose], labels[choose]), -rate, adaptation))
        _, negative, best = max(trials, key=lambda one: one[:2])
        rows.append((_accuracy(best.model, test_inputs, test_labels), best.trainable, -negative))
    accuracy, trainable, chosen = np.array(rows).T
    return xr.Dataset(
        {"accuracy": ("tuning", accuracy), "trainable": ("tuning", trainable), "rate": ("tuning", chosen)}
        | {"parameters": sum(one.numel() for one in model.parameters()), "pretraining_accuracy": reached},
        coords={"tuning": list(METHODS)},
        attrs={"data": target.name, "used": target.used, "sha256": target.sha256, "pretrained_on": source.name},
    )


def _parts(data: tuple[ImageSet, ...], adapted: int, tested: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Return images to pretrain on, to adapt to and to test on; of one data set alone, two halves of its classes."""
    if len(data) == 3:
        source, target, test = data
    elif data[0].name == "digits":
        half = data[0].num_classes // 2
        source, target = (_classes(data[0], part) for part in (slice(None, half), slice(half, None)))
        test = _classes(data[1], slice(half, None))
    else:
        source, target, test = data[0], *data
    return source, target.take(min(adapted, len(target))), test.take(min(tested, len(test)))


def _classes(images: ImageSet, part: slice) -> ImageSet:
    names = images.class_names[part]
    first = images.class_names.index(names[0])
    held = (images.labels >= first) & (images.labels < first + len(names))
    return replace(images, images=images.images[held], labels=images.labels[held] - first, class_names=names)


def _tensors(images: ImageSet, statistics: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(images.features(statistics=statistics))
    height, width = images.images.shape[1:3]
    return rows.reshape(len(images), height, width, -1).permute(0, 3, 1, 2), torch.from_numpy(images.labels)


def _pretrained(source: ImageSet, classes: int, steps: int, generator: torch.Generator) -> tuple[Classifier, float]:
    """Return a small ViT that has learnt ``source``, with a new head for ``classes``, and its accuracy there."""
    from transformers import ViTConfig, ViTForImageClassification

    inputs, labels = _tensors(source, source.statistics)
    size = inputs.shape[-1]
    shape: dict[str, Any] = {"image_size": size, "patch_size": size // 4, "num_channels": inputs.shape[1]}
    shape |= {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 2 * WIDTH}
    config = ViTConfig(num_labels=source.num_classes, **shape)  # type: ignore[call-arg]
    with forked(generator):
        model = Classifier(ViTForImageClassification(config), size)
        head = nn.Linear(WIDTH, classes)
    batches = Minibatches(inputs, labels, BATCH, generator)
    _train(
        Adaptation(model, lambda lr: [{"params": list(model.parameters()), "lr": lr}]),
        batches,
        2e-3,
        -(-steps // len(batches)),
    )
    reached = _accuracy(model, inputs, labels)
    model.model.classifier = head
    return model, reached


def _checkpoint(classes: int, generator: torch.Generator) -> Classifier:
    folder = os.environ.get(CHECKPOINT)
    if not folder or not (Path(folder) / "config.json").is_file():
        raise DataMissing(
            f"no checkpoint of ViT-B/16: set {CHECKPOINT} to a folder with its config.json and model.safetensors, as "
            "transformers saves them (pretrained on ImageNet-21k)"
        )
    from transformers import ViTForImageClassification

    with forked(generator):
        model: Any = ViTForImageClassification.from_pretrained(folder, num_labels=classes, ignore_mismatched_sizes=True)
    return Classifier(model, model.config.image_size)


def _adapted(model: Classifier, method: str, rank: int, steps: int, generator: torch.Generator) -> Adaptation:
    return adapt(
        copy.deepcopy(model),
        method,
        rank=rank,
        targets=["q_proj", "v_proj"],
        generator=generator,
        steps=steps,
        head=["classifier"],
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


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    model.train(False)
    guesses = torch.cat([model(part).argmax(dim=1) for part in torch.split(inputs, 250)])
    return float((guesses == labels).double().mean())


ADAPT_VIT = Experiment(
    "adapt-vit",
    run,
    {
        "smoke": Plan(grid(rank=2, pretrained=700, pretraining_steps=100, adapted=300, steps=30, tested=200, lr=3e-3)),
        "quick": Plan(
            grid(rank=2, pretrained=6000, pretraining_steps=480, adapted=1000, steps=160, tested=2000), seeds=3
        ),
        "paper": Plan(
            grid(rank=8, pretrained=0, pretraining_steps=0, adapted=50_000, steps=3000, tested=10_000),
            seeds=3,
            data=(("cifar10/train", "cifar10/test"),),
        ),
    },
    data=(("fashion_mnist/train", "mnist/train", "mnist/test"), ("digits/train", "digits/test")),
)
