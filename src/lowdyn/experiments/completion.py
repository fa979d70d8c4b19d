"""*completion*: a low-rank matrix from a fifth of its entries, by the original, compressed and narrow networks.

Yaras et al. 2023 (arXiv 2306.01154): d = 1000, r = 5, 20 % observed, L = 3, ε = 1e-3, η_eff = 5e-3 on the sum of
squares; the compressed network has L + 2 factors between frames of the first gradient, its outer ones at γ times the
rate; the narrow one starts from scratch at width 2r̂. At smaller d the same share of the largest stable rate is taken.
"""

from __future__ import annotations

import time

import torch
import xarray as xr

from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import Experiment, Plan, Settings, grid
from lowdyn.experiments.recovery import UnseenError, first_below, random_mask
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Completion, low_rank_target
from lowdyn.recovery import compress_network

ENOUGH, STRETCH = 1e-7, 500  # error at which a run ends, steps between looks at it


def run(
    *,
    network: str,
    size: int,
    rank: int,
    estimate: int,
    observed_fraction: float,
    lr: float,
    steps: int,
    generator: torch.Generator,
    discrepant_ratio: float = 1.0,
    depth: int = 3,
    init_scale: float = 1e-3,
    every: int = 50,
) -> xr.Dataset:
    """Return over ``step`` the relative ``error`` on unseen entries and the relative training ``loss``; and
    ``steps_to_1e_6``, the first recorded step at which the error is below 1e-6, and ``step_seconds``.

    ``network`` is "original", "compressed" or "narrow", ``estimate`` is r̂, ``discrepant_ratio`` γ. A run is over when
    its error is below 1e-7, looked at every 500 steps.
    """
    target = low_rank_target(size, size, rank=rank, generator=generator)
    mask = random_mask(size, size, observed_fraction=observed_fraction, generator=generator)
    problem = Completion(target, mask, reduction="sum")
    inner = 2 * estimate if network == "narrow" else size
    model = DeepLinearNetwork((size, *[inner] * (depth - 1), size), init_scale, generator=generator)
    rates = None
    if network == "compressed":
        model = compress_network(model, problem, estimate)
        rates = (discrepant_ratio, *[1.0] * depth, discrepant_ratio)
    start = float(problem.loss(model.end_to_end()))
    rule, probe, pieces = Descent(lr=lr, factor_rates=rates), UnseenError(target, mask), []
    began = time.perf_counter()
    for done in range(0, steps, STRETCH):
        piece = gradient_descent(model, problem, rule, min(STRETCH, steps - done), record=probe, every=every)
        pieces.append(
            piece[["error", "loss"]].assign_coords(step=piece["step"] + done).isel(step=slice(bool(done), None))
        )
        if float(piece["error"][-1]) < ENOUGH:
            break
    seconds = time.perf_counter() - began
    data = xr.concat(pieces, "step")
    data["loss"] = data["loss"] / start
    return data.assign(
        steps_to_1e_6=first_below(data, "error", 1e-6), step_seconds=seconds / max(int(data["step"][-1]), 1)
    )


def _rate(size: int, observed_fraction: float) -> float:
    """Return the published share of the largest stable rate, which goes as 1/(p σ_1^{4/3}), σ_1 near 2√d."""
    return round(5e-3 * (0.2 / observed_fraction) * (1000 / size) ** (2 / 3), 6)


def _setting(size: int, rank: int, observed_fraction: float, **options: float) -> Settings:
    lr = _rate(size, observed_fraction)
    return {"size": size, "rank": rank, "observed_fraction": observed_fraction, "lr": lr, **options}


def _ratios(original: bool, **setting: float) -> tuple[Settings, ...]:
    """The original where it is asked for, and the compressed network with γ = 0.01 and 0, r̂ = r."""
    common = {**setting, "estimate": setting["rank"]}
    compressed = grid(network="compressed", discrepant_ratio=[0.01, 0.0], **common)
    return ({"network": "original", **common}, *compressed) if original else compressed


def _estimates(estimates: list[int], seeds: int, **setting: float) -> Plan:
    cells = grid(network=["compressed", "narrow"], estimate=estimates, **setting)
    return Plan(
        tuple({**cell, "discrepant_ratio": 0.01} if cell["network"] == "compressed" else cell for cell in cells), seeds
    )


COMPLETION = Experiment(
    "completion",
    run,
    {
        "smoke": Plan(_ratios(True, **_setting(60, 2, 0.5, steps=18_000))),
        "quick": Plan(_ratios(True, **_setting(150, 3, 0.5, steps=18_000))),
        "paper": Plan(_ratios(False, **_setting(1000, 5, 0.2, steps=30_000)), seeds=2),
    },
)
ESTIMATES = Experiment(
    "completion-estimates",
    run,
    {
        "smoke": _estimates([2], 1, **_setting(100, 2, 0.3, steps=40_000)),
        "quick": _estimates([2, 4], 1, **_setting(200, 2, 0.25, steps=60_000)),
        "paper": _estimates([5, 8, 11, 14, 17, 20], 5, **_setting(1000, 5, 0.2, steps=100_000)),
    },
)
