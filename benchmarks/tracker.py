"""The tracker's budget against the clock: every matrix of a network tracked at 5 % of the training time.

A ten-layer perceptron, a small ViT, and the ViT inside transformers' Trainer are trained with and without the tracker,
in turn. The weights must be the same to the bit, the records at least eight, the reported share at most the budget, and
what the runs with the tracker take longer, by the median over rounds, within three points of the reported share.

Arguments: a factor on the number of steps, the number of rounds, and one of mlp, vit and trainer to run it alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from timing import finish, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from lowdyn import Spectra, Tracker
from lowdyn.networks import MLP
from lowdyn.observe import trainer_callback

BUDGET = 0.05


class Pictures(Dataset[dict[str, Tensor]]):
    """Random grey pictures of ten classes."""

    def __init__(self) -> None:
        self.pixels = torch.randn(256, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": torch.tensor(index % 10)}


def perceptron() -> nn.Module:
    return MLP((256, *[128] * 9, 10), generator=torch.Generator().manual_seed(0))


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_channels=1, num_labels=10, **sizes))


def by_hand(build: Callable[[], nn.Module], steps: int) -> Callable[[bool], tuple[nn.Module, Tracker | None]]:
    """Return a function that trains ``build()`` with our own loop, tracked or not."""
    data = Pictures()
    labels = torch.arange(len(data)) % 10

    def run(tracked: bool) -> tuple[nn.Module, Tracker | None]:
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        tracker = Tracker(model, Spectra(), every=1, budget=BUDGET) if tracked else None
        for step in range(steps):
            chosen = torch.arange(32 * step, 32 * (step + 1)) % len(data)
            optimizer.zero_grad()
            outputs = model(data.pixels[chosen])
            cross_entropy(getattr(outputs, "logits", outputs), labels[chosen]).backward()
            optimizer.step()
            if tracker:
                tracker.step()
        return model, tracker

    return run


def by_trainer(build: Callable[[], nn.Module], steps: int) -> Callable[[bool], tuple[nn.Module, Tracker | None]]:
    """Return a function that trains ``build()`` with transformers' Trainer, tracked or not."""

    def run(tracked: bool) -> tuple[nn.Module, Tracker | None]:
        callback = trainer_callback(Spectra(), every=1, budget=BUDGET)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=32, report_to=[], disable_tqdm=True, use_cpu=True,
                logging_strategy="no", save_strategy="no",
            )  # fmt: skip
            trainer = Trainer(build(), arguments, train_dataset=Pictures(), callbacks=[callback] if tracked else [])
            trainer.train()
        return trainer.model, callback.tracker

    return run


def timed(
    run: Callable[[bool], tuple[nn.Module, Tracker | None]], tracked: bool
) -> tuple[float, tuple[nn.Module, Tracker | None]]:
    began = time.perf_counter()
    result = run(tracked)
    return time.perf_counter() - began, result


def weights(model: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def compared(name: str, run: Callable[[bool], tuple[nn.Module, Tracker | None]], rounds: int) -> list[bool]:
    """Return whether the runs with and without a tracker keep the limits."""
    longer, shares, records, differing = [], [], [], 0
    run(False)
    before, plain = timed(run, False)
    for _ in range(rounds):
        seconds, tracked = timed(run, True)
        assert tracked[1] is not None
        seen = tracked[1].trajectory
        after, plain = timed(run, False)
        # Against the runs before and after it: a machine that slows down meanwhile slows down both.
        longer.append(2 * seconds / (before + after) - 1)
        before = after
        shares.append(seen.attrs["share"])
        records.append(seen.sizes["step"])
        differing += weights(tracked[0]) != weights(plain[0])
    share, middle = statistics.median(shares), statistics.median(longer)
    rounds_ = ", ".join(f"{one:.1%}" for one in longer)
    print(f"{name}: {before:.1f} s, {middle:.1%} longer ({rounds_}), share {share:.1%}, {records} records")
    return [
        report(f"{name}, runs that differ in a bit from those without", "all runs", differing / rounds, 0),
        report(f"{name}, eight records", "the fewest in a run", 8 / min(records), 1),
        report(
            f"{name}, reported share",
            f"the budget of {BUDGET:.0%}",
            max(shares) / BUDGET,
            1,
            f"a tracker's share of the training time, as it reports it, {name}",
        ),
        report(f"{name}, reported against measured", "three points", abs(middle - share) / 0.03, 1),
    ]


def main(scale: float = 1.0, rounds: int = 5, only: str = "") -> list[bool]:
    """Return whether all three, or ``only`` one, keep the limits; ``scale`` multiplies the steps."""
    ways = {
        "mlp": ("ten-layer MLP", by_hand, perceptron, 5000),
        "vit": ("small ViT", by_hand, vit, 1200),
        "trainer": ("small ViT in the Trainer", by_trainer, vit, 1200),
    }
    kept = []
    for name, way, build, steps in [ways[only]] if only else ways.values():
        kept += compared(name, way(build, int(steps * scale)), rounds)
    return kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    scale, rounds, *only = [*sys.argv[1:], *("1", "5")[len(sys.argv) - 1 :]]
    finish(main(float(scale), int(rounds), *only))
