"""Warm spectra against the SVD with vectors, over a real training run at 1024 x 1024.

A perceptron 64-1024-1024-1024-10 learns scikit-learn's digits by SGD with momentum; the two square weights are
recorded every ten steps. At each record: the true error of the top 16 values against the exact ones must lie within the
recorded bound and below 1e-4 of the value, and the values must cost at most 1/30 of ``torch.linalg.svd`` with vectors.
The yardstick is timed right after, on the same matrices, in float64 as an exact record takes it, and in float32.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from timing import finish, report
from torch import Tensor
from torch.nn.functional import cross_entropy

from lowdyn import Spectra
from lowdyn.networks import MLP
from lowdyn.observe.enclosure import EXTRA, enclose

TOP, STEPS, EVERY = 16, 300, 10
LAYERS = ("hidden2", "hidden3")


def training(kind: str) -> Iterator[tuple[int, MLP]]:
    """Yield the model at every record of a run."""
    digits = load_digits()
    inputs, labels = torch.tensor(digits.data / 16 - 0.3, dtype=torch.float32), torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    model = MLP((64, 1024, 1024, 1024, 10), generator=generator)
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-3)
        if kind == "adamw"
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    yield 0, model
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(labels), (128,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
        if step % EVERY == 0:
            yield step, model


def timed(function: Callable[[], Any], seconds: list[float]) -> Any:
    began = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - began)
    return result


def main(kind: str = "sgd") -> list[bool]:
    """Return whether errors, bounds and cost keep their limits."""
    generator = torch.Generator().manual_seed(1)
    blocks: dict[str, Tensor] = {}
    times: dict[str, list[float]] = {name: [] for name in ("values", "record", "float64", "float32")}
    relative, within, bounds, fallen = [], [], [], 0
    look = None
    for step, model in training(kind):
        if look is None:
            look = Spectra("|".join(LAYERS), top=TOP).begin(model)
        weights = {name: model.get_submodule(name).weight.detach() for name in LAYERS}
        # Right after the training step, as in use; after an SVD they would pay for the memory that it gave back.
        for name in blocks:
            found = timed(lambda w=weights[name], n=name: enclose(w, blocks[n], TOP, generator), times["values"])
            blocks[name] = found.block
        began = time.perf_counter()
        record = {name: value for name, (_, value) in look(step).items()}
        if step:
            times["record"].append((time.perf_counter() - began) / len(LAYERS))
            fallen += int(record["exact"].sum())
        exact = {}
        for name, weight in weights.items():
            _, exact[name], right_t = timed(
                lambda weight=weight: torch.linalg.svd(weight.double(), full_matrices=False), times["float64"]
            )
            timed(lambda weight=weight: torch.linalg.svd(weight, full_matrices=False), times["float32"])
            blocks.setdefault(name, right_t.mT[:, : TOP + EXTRA].float().contiguous())
        for place, name in enumerate(LAYERS):
            true = exact[name][:TOP].numpy()
            error = np.abs(record["singular_values"][place, :TOP] - true)
            within.append(bool((error <= record["value_bounds"][place, :TOP]).all()))
            relative.append(float((error / true).max()))
            bounds.append(float(np.median(record["value_bounds"][place, :TOP] / true)))
    cost = {name: statistics.median(values) for name, values in times.items()}
    print(f"{kind}, {len(within)} records, {fallen} fell back to the SVD, median bound {statistics.median(bounds):.1e}")
    print("milliseconds: " + ", ".join(f"{name} {1e3 * value:.1f}" for name, value in cost.items()))
    print(f"with angles and the move, a record is {cost['float64'] / cost['record']:.1f} times cheaper than one SVD,")
    print(f"and its values {cost['float32'] / cost['values']:.1f} times cheaper than one in float32")
    return [
        report("records of which a value lies outside its bound", "all records", 1 - sum(within) / len(within), 0),
        report("largest relative error of the top 16 values", "1e-4", max(relative) / 1e-4, 1),
        report(
            "top 16 values of a 1024 x 1024 weight",
            "an SVD with vectors, float64",
            cost["values"] / cost["float64"],
            1 / 30,
            "top 16 singular values of a 1024 x 1024 weight in training, with bounds",
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    finish(main(*sys.argv[2:]))
