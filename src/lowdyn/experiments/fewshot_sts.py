"""*fewshot-sts*: a small language model learns from a few pairs of sentences how alike two sentences are.

Yaras et al. 2024 (arXiv 2406.04112) fine-tune BERT on 16 to 1024 pairs of STS-B. Here: all-MiniLM-L6-v2 whose last
two layers are drawn anew (as it is, it knows the task), cosine of mean features against score / 5, AdamW, batches of 8,
150 steps. Adapters are on all linear layers of the last ``adapted`` ones: all six, as published, but at smoke scale,
where what lies below the two that were drawn anew is computed once for all runs. Every method gets the best of three
rates of its own, by its score on 300 development pairs with a seed and pairs that are not used again; the scores
reported are on 300 others. The eps of AdamW is 1e-6 for the paper's baseline, as published, and torch's 1e-8 for the
others: the first gradients of Deep LoRA's cores are ε² = 1e-6 times those of ΔW, and with eps = 1e-6 it stays at its
start for all of the 150 steps.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch.nn.functional import mse_loss

from lowdyn.data import SentencePairs
from lowdyn.experiments.adaptation import adapt, update_rank
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.experiments.minilm import PairCosine, upper_layers, weights_folder
from lowdyn.seeding import drawn_seed
from lowdyn.training import Minibatches, train

METHODS = ("lora", "plain_lora", "deep_lora")
# A factor of three apart, around the best of each: the updates of one rate differ in size from method to method.
RATES = {"lora": (1e-3, 3e-3, 1e-2), "plain_lora": (1e-4, 3e-4, 1e-3), "deep_lora": (3e-3, 1e-2, 3e-2)}
CHOICE_SEED, CHOICE_SAMPLES, CHOICE_RANK = 2**40, 64, 8  # with which rates are chosen, once for each method
RENEWED, BATCH = 2, 8
TARGETS = ["query", "key", "value", "dense"]  # all linear layers
EPS = {"plain_lora": 1e-6}


def run(
    *,
    data: tuple[SentencePairs, SentencePairs],
    samples: int,
    rank: int,
    adapted: int,
    steps: int,
    dev_pairs: int,
    generator: torch.Generator,
    lr: float | None = None,
) -> xr.Dataset:
    """Return over ``tuning`` the Spearman correlation ``score``, the ``update_rank`` and the ``rate``.

    ``before`` is the score without training. With ``lr`` every method takes that rate and none is chosen.
    """
    train_pairs, dev = data
    seed = drawn_seed(generator)
    judged = _dev(dev, dev_pairs, 0)
    rows = []
    for method in METHODS:
        rate = _chosen_rate(train_pairs, dev, method, adapted, steps, dev_pairs) if lr is None else lr
        rows.append((*_trained(train_pairs, judged, method, samples, rank, adapted, steps, rate, seed), rate))
    score, ranks, rates = np.array(rows).T
    before, _ = _trained(train_pairs, judged, METHODS[0], samples, rank, adapted, 0, 0.0, seed)
    return xr.Dataset(
        {"score": ("tuning", score), "update_rank": ("tuning", ranks), "rate": ("tuning", rates), "before": before},
        coords={"tuning": list(METHODS)},
        attrs=described(dev) | {"used": judged.used},
    )


def _dev(dev: SentencePairs, count: int, part: int) -> SentencePairs:
    """Return the ``part``-th block of ``count`` pairs, in an order that is always the same."""
    order = torch.randperm(len(dev), generator=torch.Generator().manual_seed(0)).numpy()
    return dev.take(order[part * count : (part + 1) * count])


@functools.cache
def _chosen_rate(
    train_pairs: SentencePairs, dev: SentencePairs, method: str, adapted: int, steps: int, dev_pairs: int
) -> float:
    judged = _dev(dev, dev_pairs, 1)
    scores = [
        _trained(train_pairs, judged, method, CHOICE_SAMPLES, CHOICE_RANK, adapted, steps, rate, CHOICE_SEED)[0]
        for rate in RATES[method]
    ]
    return RATES[method][int(np.argmax(scores))]


def _trained(
    pairs: SentencePairs,
    judged: SentencePairs,
    method: str,
    samples: int,
    rank: int,
    adapted: int,
    steps: int,
    lr: float,
    seed: int,
) -> tuple[float, float]:
    """Return the score on ``judged`` and the rank of the updates after training; all is drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    chosen = pairs.take(torch.randperm(len(pairs), generator=generator)[:samples].numpy())
    base = upper_layers(generator, count=adapted, renewed=RENEWED)
    adaptation = adapt(base, method, rank=rank, targets=TARGETS, generator=generator, steps=steps)
    model = PairCosine(adaptation.model, chosen.first, chosen.second, upper=adapted)
    targets = torch.from_numpy(chosen.scores / 5).to(torch.float32)
    passes = itertools.repeat(Minibatches(torch.arange(samples), targets, BATCH, generator))
    batches = list(itertools.islice(itertools.chain.from_iterable(passes), steps))
    if batches:
        optimizer = torch.optim.AdamW(adaptation.groups(lr), eps=EPS.get(method, 1e-8), weight_decay=0.0, fused=True)
        train(model, batches, optimizer=optimizer, epochs=1, loss=mse_loss)
    model.eval()
    cosines = PairCosine(adaptation.model, judged.first, judged.second, upper=adapted).all()
    return float(spearmanr(cosines.numpy(), judged.scores).statistic), update_rank(adaptation.model)


_SETTINGS = {"steps": 150, "dev_pairs": 300}
FEWSHOT_STS = Experiment(
    "fewshot-sts",
    run,
    {
        "smoke": Plan(grid(samples=16, rank=8, adapted=2, steps=3, dev_pairs=20, lr=3e-3), seeds=2),
        "quick": Plan(grid(samples=[16, 64], rank=8, adapted=6, **_SETTINGS), seeds=3),
        "paper": Plan(
            (
                *grid(samples=[16, 64, 256], rank=8, adapted=6, **_SETTINGS),
                *grid(samples=64, rank=[32, 64], adapted=6, **_SETTINGS),
            ),
            seeds=5,
        ),
    },
    data=(("sts_benchmark/train", "sts_benchmark/dev"),),
    installed=weights_folder,
)
