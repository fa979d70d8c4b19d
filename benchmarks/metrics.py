"""Layer metrics against the covariance matrices they avoid, and against the forward pass that makes the features.

``python benchmarks/metrics.py`` times one pass over 10 000 × 1024 features of ten classes beside

- the two-pass form, class means first, then Σ_W and Σ_B as 1024 × 1024 matrices, of which the traces are taken, in
  the same float64 and, for comparison, in float32;
- the layer that makes such features, ``nn.Linear(1024, 1024)`` in float32 on the same samples.

It then generates as many features as ImageNet has images, 1 281 167 × 2048 of 1000 classes, in a process of its own,
passes them all, neural collapse included, and prints what memory the process came to; ``memory`` as argument does only
that. It takes minutes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from timing import finish, medians, report
from torch import Tensor, nn

from lowdyn import layer_metrics
from lowdyn.observe import ClassMoments, class_measures

SAMPLES, WIDTH, CLASSES = 10_000, 1024, 10
GIB = 2**30


def two_pass(features: Tensor, labels: Tensor, dtype: torch.dtype) -> float:
    """Return tr Σ_W / tr Σ_B from the matrices themselves."""
    features = features.to(dtype)
    means = torch.stack([features[labels == k].mean(dim=0) for k in range(CLASSES)])
    within = torch.zeros(WIDTH, WIDTH, dtype=dtype)
    for k in range(CLASSES):
        centred = features[labels == k] - means[k]
        within += centred.T @ centred / len(centred) / CLASSES
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / CLASSES
    return float(within.trace() / between.trace())


def compare() -> list[bool]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    features = torch.randn(CLASSES, WIDTH, generator=generator)[labels]
    features += torch.randn(SAMPLES, WIDTH, generator=generator)
    layer = nn.Linear(WIDTH, WIDTH)

    def one_pass() -> float:
        moments = ClassMoments(CLASSES, WIDTH)
        moments.update(features, labels)
        return class_measures(moments)["within_between_ratio"]

    @torch.no_grad()
    def forward() -> Tensor:
        return layer(features)

    print(f"largest difference of the two forms: {abs(one_pass() / two_pass(features, labels, torch.float64) - 1):.1e}")
    times = medians(
        {
            "one pass": one_pass,
            "float64": lambda: two_pass(features, labels, torch.float64),
            "float32": lambda: two_pass(features, labels, torch.float32),
            "forward": forward,
        },
        repeats=9,
    )
    print(f"one pass over {SAMPLES} x {WIDTH}: {1e3 * times['one pass']:.0f} ms")
    print(f"     the two-pass form in float32 takes {times['float32'] / times['one pass']:.1f} times as long")
    return [
        report(
            "one pass of layer metrics",
            "the two-pass covariance form, float64",
            times["one pass"] / times["float64"],
            0.25,
            "layer metrics of 10 000 x 1024 features",
        ),
        report("one pass of layer metrics", "the forward pass of the layer", times["one pass"] / times["forward"], 1.0),
    ]


class Generated:
    """Features of ImageNet's number, width and classes, made anew, and alike, in every pass."""

    samples, width, classes, batch = 1_281_167, 2048, 1000, 4096

    def __init__(self) -> None:
        self.centres = torch.randn(self.classes, self.width, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        for first in range(0, self.samples, self.batch):
            labels = torch.arange(first, min(first + self.batch, self.samples)) % self.classes
            features = torch.randn(len(labels), self.width, generator=generator)
            yield features.add_(self.centres[labels]), labels


def memory() -> list[bool]:
    def peak() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    imported, began = peak(), time.perf_counter()
    loader = Generated()
    metrics = layer_metrics(nn.Identity(), loader, loader.classes, "self", collapse=True).sel(layer="self")
    # Centres of unit variance and noise of unit variance, in every coordinate.
    print(f"D = {float(metrics['within_between_ratio']):.4f}, NC1 = {float(metrics['nc1']):.4f}")
    print(f"{loader.samples} x {loader.width} features in {time.perf_counter() - began:.0f} s, two passes")
    print(f"peak {peak() / GIB:.2f} GiB, of which {imported / GIB:.2f} GiB after the imports")
    short = "memory for layer metrics of 1 281 167 x 2048 features, process and imports included"
    return [report("memory of the whole process", "1 GiB", peak() / GIB, 1.0, short)]


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        finish(memory())
    # In a process of its own, whose peak memory is its own.
    finish([*compare(), subprocess.run([sys.executable, __file__, "memory"], check=False).returncode == 0])
