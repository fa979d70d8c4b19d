"""*theorem*: the block form of every weight, over whole runs that learn, in the shapes that the theorem covers.

Yaras et al. 2023 (arXiv 2306.01154), main theorem. The rate is a fraction of the largest stable one, so that
one table serves all shapes.
"""

from __future__ import annotations

import torch
import xarray as xr

from lowdyn.dynamics import Descent, gradient_descent, inert_scales, stable_lr
from lowdyn.experiments.experiment import Experiment, Plan, Settings, grid
from lowdyn.experiments.starts import start_with_frames
from lowdyn.observe import Spectra
from lowdyn.observe.blocks import BlockStructure
from lowdyn.problems import Factorization, low_rank_target
from lowdyn.trajectory import Probe


def run(
    *,
    width: int,
    outputs: int,
    rank: int,
    depth: int,
    init_scale: float,
    weight_decay: float,
    steps: int,
    lr_fraction: float,
    generator: torch.Generator,
    start: str = "orthogonal",
    disturbance: float = 0.0,
) -> xr.Dataset:
    """Return block residuals, spectra and the predicted inert scales over (step, layer), every 100 steps."""
    problem = Factorization(low_rank_target(outputs, width, rank=rank, generator=generator))
    sizes = (*[width] * depth, outputs)
    network, frames = start_with_frames(sizes, init_scale, problem, generator, start=start, disturbance=disturbance)
    rate = lr_fraction * stable_lr(problem, depth, weights=network.weights)
    descent = Descent(lr=rate, weight_decay=weight_decay)
    predicted = inert_scales(frames, problem, descent, steps, every=100)
    probes: list[Probe] = [BlockStructure(frames.bases), Spectra(top=0)]
    trajectory = gradient_descent(network, problem, descent, steps, record=probes, every=100)
    kept = [name for name in trajectory if not str(name).endswith(("angles", "turn"))]
    trajectory = trajectory[kept].assign(predicted_scale=(("step", "layer"), predicted), lr=rate)
    return trajectory.assign_coords(
        layer=range(1, depth + 1), end_to_end_index=range(trajectory.sizes["end_to_end_index"])
    )


def _cells(*rows: tuple[int, int, int, int, float, float], steps: int) -> tuple[Settings, ...]:
    names = ("width", "outputs", "rank", "depth", "init_scale", "weight_decay")
    return tuple({**dict(zip(names, row, strict=True)), "steps": steps, "lr_fraction": 0.3} for row in rows)


SQUARE = (
    (30, 30, 3, 3, 1.0, 0.0),
    (30, 30, 3, 3, 0.01, 0.0),
    (30, 30, 3, 2, 0.1, 0.0),
    (40, 40, 5, 4, 0.3, 1e-4),
    (24, 24, 2, 6, 0.5, 0.0),
    (100, 100, 10, 3, 0.1, 0.0),
)
WIDE = (
    (30, 3, 3, 3, 0.5, 0.0),
    (30, 3, 3, 2, 0.1, 0.0),
    (40, 4, 4, 3, 0.3, 1e-4),
    (24, 2, 2, 5, 0.5, 0.0),
    (100, 10, 10, 3, 0.1, 0.0),
)
SCALES_SWEPT = [1.0, 0.3, 0.1, 0.03, 0.01]


def _sweep(steps: int, init_scale: list[float]) -> tuple[Settings, ...]:
    shape = {"width": 30, "outputs": 30, "rank": 3, "depth": 3, "weight_decay": 0.0, "lr_fraction": 0.3}
    return grid(**shape, steps=steps, init_scale=init_scale)


THEOREM_SQUARE = Experiment(
    "theorem-square",
    run,
    {
        "smoke": Plan(_cells(*SQUARE[1:4], steps=4000)),
        "quick": Plan(_cells(*SQUARE[:5], steps=4000), seeds=2),
        "paper": Plan(_cells(*SQUARE, steps=6000), seeds=5),
    },
)
THEOREM_WIDE = Experiment(
    "theorem-wide",
    run,
    {
        "smoke": Plan(_cells(*WIDE[:3], steps=4000)),
        "quick": Plan(_cells(*WIDE[:4], steps=4000), seeds=2),
        "paper": Plan(_cells(*WIDE, steps=6000), seeds=5),
    },
)
THEOREM_SCALES = Experiment(
    "theorem-scales",
    run,
    {
        "smoke": Plan(_sweep(4000, [1.0, 0.1, 0.01])),
        "quick": Plan(_sweep(4000, SCALES_SWEPT), seeds=2),
        "paper": Plan(_sweep(6000, [*SCALES_SWEPT, 0.003]), seeds=5),
    },
)
