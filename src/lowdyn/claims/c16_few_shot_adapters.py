"""C16. Deep LoRA wins with few samples, learns updates of lower rank, and is robust to the rank it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_most, shown
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.fewshot_sts import CHOICE_RANK, CHOICE_SAMPLES, FEWSHOT_STS
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C16"
PART = "use"
TITLE = "Deep LoRA with few samples"
CLAIM = (
    "With few samples Deep LoRA, ΔW = U C_3 C_2 C_1 Vᵀ from a small start, beats LoRA, learns updates of lower "
    "numerical rank, and depends less on the rank it is given."
)
SOURCE = "Lecture, 'Deep LoRA'; Yaras et al. 2024, arXiv 2406.04112"
PUBLISHED = "BERT on STS-B: gains with 16 to 1024 samples, lower ranks, flat over ranks 8 to 64 (figures)."
DEVIATION = (
    "MiniLM of 22 M parameters with its last two layers drawn anew, cosine head, 150 steps; each method at the best "
    "of three rates. AdamW's eps is 1e-6, as published, for the paper's LoRA only: the start is near a saddle, where "
    "the gradients of Deep LoRA's cores are ε² = 1e-6 times those of ΔW, and a step of Adam is rate · g / (|g| + eps); "
    "with eps far above |g| it does not leave its start in 150 steps. The judge is the better of two LoRAs: PEFT's, "
    "and the paper's (A ~ N(0, 1), no scaling). Quick: 16 and 64 samples at rank 8, 3 "
    "seeds; smoke: adapters on the two new layers only, which is hard on Deep LoRA (on the pairs and seed of choice it "
    "scores 0.57, 0.67, 0.75 with 2, 4, 6 layers adapted at rate 3e-3, PEFT's LoRA 0.79 with 4 and with 6). Paper: "
    "also 256 samples and ranks 32, 64, 5 seeds."
)
SCALE_NOTE = "Smoke scale judges two seeds by 20 pairs, where any gain is within the noise."
EXPERIMENTS = (FEWSHOT_STS,)
NAMES = {"lora": "LoRA (PEFT)", "plain_lora": "LoRA (paper's baseline)", "deep_lora": "Deep LoRA"}
BASELINES = ["lora", "plain_lora"]


def check(datasets: Datasets) -> list[Check]:
    """Judge gain, rank of the updates and spread over ranks, each for itself."""
    cells = [(settings, data) for settings, data in each_cell(datasets[FEWSHOT_STS.name])]
    at_rank = [(settings["samples"], data) for settings, data in cells if settings["rank"] == CHOICE_RANK]
    baseline = _better(xr.concat([data["score"] for _, data in at_rank], dim="samples"))
    gains = {samples: (_of(data, "deep_lora") - _of(data, baseline)).values for samples, data in at_rank}
    pooled = np.concatenate(list(gains.values()))
    error = pooled.std(ddof=1) / np.sqrt(len(pooled)) if len(pooled) > 1 else np.nan
    lower = [
        float((data["update_rank"].sel(tuning=method)).mean())
        for method in ("deep_lora", baseline)
        for _, data in at_rank
    ]
    deep, other = np.mean(lower[: len(at_rank)]), np.mean(lower[len(at_rank) :])
    checks = [
        Check(
            f"mean gain over {NAMES[baseline]} less two standard errors (all sample sizes)",
            float(pooled.mean() - 2 * error),
            "> 0",
            None,
            bool(pooled.mean() > 2 * error),
        ),
        Check(
            "numerical rank of the update (σ above 1 % of the largest)",
            float(deep),
            f"< {other:.3g}",
            None,
            bool(deep < other),
        ),
        _spread(cells, baseline),
    ]
    for samples, gain in gains.items():
        checks.append(shown(f"gain with {samples} samples", _mean_and_deviation(gain), "positive (figure)"))
    for samples, data in at_rank:
        scores = ", ".join(f"{NAMES[name]} {_mean_and_deviation(_of(data, name).values)}" for name in NAMES)
        before = _mean_and_deviation(data["before"].values)
        checks.append(shown(f"Spearman correlation with {samples} samples", f"{scores}; before {before}", "figure"))
    rates = at_rank[0][1]["rate"].isel(seed=0)
    chosen = ", ".join(f"{NAMES[name]} {float(rates.sel(tuning=name)):g}" for name in NAMES)
    checks.append(shown("learning rates chosen", chosen, "1e-4 (BERT)"))
    return checks


def _of(data: xr.Dataset, method: str) -> xr.DataArray:
    return data["score"].sel(tuning=method)


def _better(score: xr.DataArray) -> str:
    return max(BASELINES, key=lambda method: float(score.sel(tuning=method).mean()))


def _spread(cells: list[tuple[dict[str, object], xr.Dataset]], baseline: str) -> Check:
    """Hold the largest less the smallest mean score over ranks against the baseline's."""
    text = f"spread of the mean score over ranks, {CHOICE_SAMPLES} samples"
    ranks = [data for settings, data in cells if settings["samples"] == CHOICE_SAMPLES]
    if len(ranks) < 2:
        return shown(text, "one rank at this scale", "smaller than LoRA's")
    means = {method: [float(_of(data, method).mean()) for data in ranks] for method in ("deep_lora", baseline)}
    deep, other = (max(values) - min(values) for values in means.values())
    return at_most(text, deep, other)


def _mean_and_deviation(values: np.ndarray) -> str:
    deviation = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{deviation}"


def draw(datasets: Datasets) -> Figure:
    """Draw the score of every method against the number of samples at rank 8, mean and range over seeds."""
    cells = each_cell(datasets[FEWSHOT_STS.name])
    at_rank = sorted(
        ((settings["samples"], data) for settings, data in cells if settings["rank"] == CHOICE_RANK),
        key=lambda one: one[0],
    )
    lines = []
    for method, name in NAMES.items():
        scores = np.array([_of(data, method).values for _, data in at_rank])
        lines.append(over_seeds(name, [samples for samples, _ in at_rank], scores))
    before = np.array([data["before"].values for _, data in at_rank])
    lines.append(over_seeds("before training", [samples for samples, _ in at_rank], before, dash=True))
    return curves(
        lines, x_label="training pairs", y_label="Spearman correlation", title="Few samples: LoRA and Deep LoRA"
    )
