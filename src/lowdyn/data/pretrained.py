"""A pretrained vision transformer that lies in the data folder: found and identified here, read by the networks."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from lowdyn.data.checks import DataMissing
from lowdyn.data.sources import data_folder

NAME = "vit_b_16"
PLACES = ("vit-b-16/model.safetensors", "vit-b-16.safetensors")
HOW = (
    f"put {PLACES[0]} and its config.json into the data folder, as google/vit-base-patch16-224-in21k is published on "
    f"the Hugging Face Hub, or timm's vit_base_patch16_224.augreg_in21k as {PLACES[1]}"
)


@dataclass(frozen=True)
class PretrainedViT:
    """A file of weights; ``sha256`` is that of its bytes."""

    path: Path
    sha256: str
    name: str = NAME

    @property
    def used(self) -> str:
        """How much is held, in words."""
        return "all weights but the head"


def load_pretrained(folder: str | os.PathLike[str] | None = None) -> PretrainedViT:
    """Return the file of ViT-B/16 in the data folder, not read yet; DataMissing with how to get it if there is none."""
    path = _found(folder)
    if path is None:
        raise DataMissing(f"{NAME}: no {' or '.join(PLACES)} in {data_folder(folder) or 'any data folder'}; {HOW}")
    with path.open("rb") as file:
        return PretrainedViT(path, hashlib.file_digest(file, "sha256").hexdigest())


def pretrained_available(folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether the file is there; it is not opened."""
    return _found(folder) is not None


def _found(folder: str | os.PathLike[str] | None) -> Path | None:
    root = data_folder(folder)
    places = [] if root is None else [root / place for place in PLACES]
    return next((path for path in places if path.is_file()), None)
