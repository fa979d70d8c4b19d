"""*spectra-pretrained*: the penultimate weight of ViT-B/16, read from the data folder and fine-tuned on CIFAR-10.

The lecture shows "ViT-base" without settings. Here, after the fine-tuning of Dosovitskiy et al. 2021 (arXiv
2010.11929): a new head of zeros, SGD with momentum 0.9 and no weight decay, a rate that falls as a cosine to 0; images
of 32 pixels enlarged to the 224 of the checkpoint, from −1 to 1. A step of 32 images is 3.4 TFLOP (35 GFLOP an image
forwards, twice that backwards), so 500 of them are some hours on a CPU, and only the paper scale runs it.
"""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.data import ImageSet, PretrainedViT
from lowdyn.data.pretrained import HOW
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.experiments.fitting import fit
from lowdyn.experiments.spectra import followed
from lowdyn.networks.pretrained import pretrained_vit
from lowdyn.networks.vit import SmallViT

PIXELS = ([0.5] * 3, [0.5] * 3)  # mean and deviation that ViT-B/16 was trained with


class Enlarged(nn.Module):
    """A vision transformer that is given smaller square images, as flat rows, and enlarges them."""

    def __init__(self, model: SmallViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs (samples, num_classes) for rows (samples, side · side · channels)."""
        side, _, channels = self.model.image
        small = round((rows.shape[1] / channels) ** 0.5)
        images = rows.reshape(len(rows), small, small, channels).permute(0, 3, 1, 2)
        if small != side:
            images = nn.functional.interpolate(images, size=side, mode="bilinear")
        outputs: Tensor = self.model(images.permute(0, 2, 3, 1))
        return outputs


def run(
    *,
    generator: torch.Generator,
    kept: int,
    batch: int,
    steps: int,
    lr: float,
    data: tuple[Any, ...] = (),
) -> xr.Dataset:
    """Return what *spectra* does of ``block<depth>.contract``; without ``steps``, data or a fit file, ``cannot``: why.

    ``data`` are the images, of which at most ``kept`` are trained on, and the checkpoint. ``model`` names the network
    that was read. The last pass over the images is made to its end.
    """
    if not steps:
        return _none("fine-tuned at paper scale only, where it takes hours on a CPU")
    if not data:
        return _none(f"{HOW}, with CIFAR-10 beside it")
    images, checkpoint = _checked(data)
    images = images.take(min(kept, len(images)))
    rows = torch.from_numpy(images.features(statistics=PIXELS))
    try:
        network = pretrained_vit(checkpoint.path, images.num_classes, generator=generator)
    except ValueError as error:  # the other networks of the claim are judged all the same
        return _none(str(error))
    name = f"ViT of width {network.class_token.shape[-1]}, {len(network.blocks)} blocks, patches of {network.patch}"
    a_pass = -(-len(rows) // batch)
    epochs = -(-steps // a_pass)
    rule: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch": batch, "weight_decay": 0.0, "generator": generator}
    seen = followed(
        network,
        f"block{len(network.blocks)}.contract",
        epochs * a_pass,
        lambda tracker: fit(Enlarged(network), rows, torch.from_numpy(images.labels), tracker=tracker, **rule),
    )
    return seen.assign_attrs(
        **described(images, checkpoint),
        classes=images.num_classes,
        model="ViT-B/16" if name == "ViT of width 768, 12 blocks, patches of 16" else name,
    )


def _checked(data: tuple[Any, ...]) -> tuple[ImageSet, PretrainedViT]:
    images, checkpoint = data
    if not isinstance(images, ImageSet) or not isinstance(checkpoint, PretrainedViT):
        raise TypeError(f"data must be images and a checkpoint, got {images!r} and {checkpoint!r}")
    return images, checkpoint


def _none(why: str) -> xr.Dataset:
    return xr.Dataset({"trained": False}, attrs={"cannot": why})


_RATE = {"batch": 32, "lr": 0.002}
SPECTRA_PRETRAINED = Experiment(
    "spectra-pretrained",
    run,
    {
        "smoke": Plan(grid(kept=0, steps=0, **_RATE)),
        "quick": Plan(grid(kept=0, steps=0, **_RATE)),
        # Without a checkpoint nothing is run, and the claim says what is missing.
        "paper": Plan(grid(kept=4000, steps=500, **_RATE), data=(("cifar10/train", "vit_b_16"), ())),
    },
)
