#!/usr/bin/env python3
"""Estimate how long claims take at paper scale, from shortened runs of it.

    LOWDYN_DATA=DIR python benchmarks/estimates.py [C1 …]

By default the claims that docs/results/paper/results.json lacks. A run is made at two short lengths, which tell what
its start and end cost from what an epoch or a step of it costs; cells that cost the same are timed once. What other
programs take of the machine meanwhile is in the estimate, which is then an upper bound. Where there is no checkpoint of
ViT-B/16 random weights of its shapes stand for it. All goes to docs/results/paper/estimates.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lowdyn.claims.claim import Claim, all_claims
from lowdyn.data import DataMissing, PretrainedViT
from lowdyn.data.pretrained import NAME, PLACES, pretrained_available
from lowdyn.experiments import adapt_vit
from lowdyn.experiments.experiment import Experiment, Settings
from lowdyn.files import replace_atomically
from lowdyn.provenance import machine
from lowdyn.runner import Folder, Reproduction
from lowdyn.runner.origin import FIELDS, data_together
from lowdyn.runner.reproduction import Sweep

CROWDED = 0.6  # share of its time that a thread has a processor; two of one run by itself have more
PAPER = Path(__file__).resolve().parent.parent / "docs" / "results" / "paper"


@dataclass(frozen=True)
class Short:
    """Settings in place of those of a cell, and to each length among them a longer one.

    ``like`` returns the cell that is timed in place of a cell, ``full`` of a cell and its data sets the length it would
    have where it is not that of its settings; ``note`` says so. ``given`` returns those of the data sets that a run is
    given, ``least`` the lengths that may not be 1.
    """

    settings: Settings
    longer: Mapping[str, int]
    like: Callable[[Settings], Settings] = lambda cell: cell
    full: Callable[[Settings, Sequence[Any]], Mapping[str, float]] = lambda cell, sets: {}
    note: str = ""
    given: Callable[[Sequence[Any]], Sequence[Any]] = lambda sets: sets
    least: Mapping[str, int] = field(default_factory=dict)


def _adapted(cell: Settings, sets: Sequence[Any]) -> dict[str, float]:
    """Return the lengths of *adapt-vit* as those of one run on one image set, at one rate, in steps of 8 images."""
    rates = len(adapt_vit.CHECKPOINT_RATES["full"])  # of each, judged by images that are set aside
    steps = tested = 0.0
    for train, test in zip(sets[:-1:2], sets[1:-1:2], strict=True):
        held = min(cell["adapted"], len(train))
        batches = -(-(held - held // 5) // adapt_vit.BATCH)
        steps += rates * -(-cell["steps"] // batches) * batches * adapt_vit.BATCH / 8
        tested += rates * (held // 5) + min(cell["tested"], len(test))
    return {"steps": steps, "tested": tested}


_IMAGES = Short({"samples": 1280, "epochs": 1}, {"epochs": 9})
SHORT = {
    **dict.fromkeys(("image-mlp", "hybrid", "heads", "real-depths-fashion", "real-depths-cifar"), _IMAGES),
    # Four epochs of 1 280 images are 40 updates, after each of which *spectra* looks, as often as it does in any run.
    "spectra": Short({"samples": 1280, "epochs": 4}, {"epochs": 20}, note="of the ViT 32 samples"),
    "digits-mlp": Short({"epochs": 50}, {"epochs": 150}),
    "lowrank-mlp": Short(
        {"samples": 1280, "epochs": 1, "usps_epochs": 1},
        {"epochs": 3, "usps_epochs": 3},
        like=lambda cell: cell if cell["variant"].startswith("dense") else {**cell, "variant": "r = 20"},
        note="one rank for all",
    ),
    "fewshot-sts": Short(
        {"steps": 2, "dev_pairs": 20, "lr": 3e-3},
        {"steps": 8, "dev_pairs": 80},
        like=lambda cell: {**cell, "samples": 64},
    ),
    # All four methods on ten images of the first set, eight of which are learnt from.
    "adapt-vit": Short(
        {"adapted": 10, "steps": 2, "tested": 10, "lr": 1e-3},
        {"steps": 4, "tested": 42},
        full=_adapted,
        note="steps of 8 images and not of 64, on CIFAR-10 for both sets",
        given=lambda sets: (*sets[:2], sets[-1]),
        least={"steps": 2, "tested": 10},  # AdaLoRA takes no fewer steps, nor a set of ten classes fewer images
    ),
    # After each of 40 steps, or each second of 80, *spectra-pretrained* looks, as often as it does in any run.
    "spectra-pretrained": Short(
        {"kept": 10, "batch": 2, "steps": 40},
        {"steps": 80},
        full=lambda cell, sets: {"steps": cell["steps"] * cell["batch"] / 2},
        note="steps of 2 images and not of 32",
    ),
    # Runs end at an error of 1e-7, not at their last step.
    "completion-estimates": Short(
        {"steps": 100},
        {"steps": 2000},
        full=lambda cell, sets: {"steps": 20_500 if cell["network"] == "compressed" else 62_000},
        note="for 20 500 steps of compressed networks, as measured at r̂ = 5, and the published 62 000 of narrow ones",
    ),
}


def estimated(seconds: Callable[[Settings], float], short: Settings, longer: Settings, full: Settings) -> float:
    """Return the seconds of a run of ``full`` length from runs of ``short`` length, each length made longer in turn.

    RuntimeError when a longer run took no longer, as happens when other programs leave the machine meanwhile.
    """
    first = seconds(short)
    rates = {name: (seconds({**short, name: value}) - first) / (value - short[name]) for name, value in longer.items()}
    for name, rate in rates.items():
        if rate <= 0:
            raise RuntimeError(
                f"{name} {longer[name]} took no longer than {short[name]}: the machine was busy, run again"
            )
    return first + sum(rate * (full[name] - short[name]) for name, rate in rates.items())


def images_of(sweep: Sweep, length: str, samples: int) -> int:
    """Return how many images an epoch goes through."""
    images: Any = sweep.sets[-2 if length == "usps_epochs" else 0]
    labels = images.labels
    if sweep.name == "heads":  # one half of the classes
        labels = labels[labels < images.num_classes // 2]
    return min(samples, len(labels))


def full_lengths(sweep: Sweep, cell: Settings, short: Short, settings: Settings) -> dict[str, float]:
    """Return the lengths of a run of ``cell``, in epochs of as many images as those of the shortened ``settings``."""
    full: dict[str, float] = {name: short.full(cell, sweep.sets).get(name, cell[name]) for name in short.longer}
    for name in full:
        if name.endswith("epochs"):
            full[name] *= images_of(sweep, name, cell["samples"]) / images_of(sweep, name, settings["samples"])
    return full


def time_cell(sweep: Sweep, cell: Settings, short: Short, *, warm: bool) -> float:
    """Return the seconds of one run of ``cell``, estimated; ``warm`` after another cell of the experiment."""
    settings = {**cell, **short.settings, **({"samples": 32} if cell.get("model") == "ViT" else {})}
    run = sweep.runs[0][0]

    def seconds(lengths: Settings) -> float:
        return float(replace(run, settings={**settings, **lengths}).make(short.given(sweep.sets)).attrs["seconds"])

    begin = {name: settings[name] for name in short.longer}
    if not warm:
        seconds({**dict.fromkeys(begin, 1), **short.least})  # loads, compiles and keeps what later runs need no more
    return estimated(seconds, begin, short.longer, full_lengths(sweep, cell, short, settings))


def time_experiment(experiment: Experiment, run: Reproduction) -> tuple[float, str, Sweep]:
    """Return the seconds of all runs of an experiment, how they were estimated, and what it would run.

    DataMissing without its data, or where no shortened run of it is known.
    """
    sweep = run.sweep(experiment)
    short = SHORT.get(sweep.name)
    if short is None:
        raise DataMissing("no data for it" if not sweep.sets else "no shortened run of it is known")
    runs: Counter[str] = Counter()
    for cell in sweep.cells:
        runs[json.dumps(short.like(cell))] += len(sweep.seeds)
    if sweep.name == "fewshot-sts":  # rates are chosen once, each method by three runs at rank 8
        runs[json.dumps(short.like(sweep.cells[0]))] += 3
    total = 0.0
    for number, (text, count) in enumerate(runs.items()):
        one = time_cell(sweep, json.loads(text), short, warm=number > 0)
        print(f"  {sweep.name} {text}: {count} runs of {one:.1f} s", flush=True)
        total += count * one
    lengths = [
        f"{name} {value} and {short.longer[name]}" for name, value in short.settings.items() if name in short.longer
    ]
    kept = [f"{name} {value}" for name, value in short.settings.items() if name not in short.longer and name != "lr"]
    return total, f"{sweep.name} with {', '.join(filter(None, (*kept, *lengths, short.note)))}", sweep


def reads_vit(claim: Claim) -> bool:
    """Return whether a claim is judged by ViT-B/16 at paper scale."""
    return any(NAME in choice for experiment in claim.EXPERIMENTS for choice in experiment.plans["paper"].data)


@contextlib.contextmanager
def random_vit(data_dir: Path | None, **sizes: int) -> Iterator[Path]:
    """Yield a data folder of what is in ``data_dir`` and random weights of ViT-B/16, or of other ``sizes``.

    What lies in ``data_dir`` at the place of the weights is left out, so that it is not written to.
    """
    from transformers import ViTConfig, ViTModel

    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folder = Path(name)
        own = (folder / PLACES[0]).parent
        for entry in data_dir.iterdir() if data_dir else ():
            if entry.name != own.name:
                (folder / entry.name).symlink_to(entry.resolve())
        ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(own)
        yield folder


def estimate(claim: Claim, run: Reproduction, *, random: bool = False) -> dict[str, Any] | None:
    """Return the entry of a claim, None if nothing of it can be estimated; ``random`` where the weights of ViT are."""
    total, how, data = 0.0, [], []
    began = time.perf_counter(), time.process_time()
    for experiment in claim.EXPERIMENTS:
        try:
            seconds, words, sweep = time_experiment(experiment, run)
        except DataMissing as missing:
            print(f"  no estimate of {experiment.name}: {missing}", flush=True)
            how.append(f"without {experiment.name}")
            continue
        total += seconds
        weights = [one for one in sweep.sets if random and isinstance(one, PretrainedViT)]
        how.append(f"{words}, random weights" if weights else words)
        data += [{field: getattr(one, field) for field in FIELDS} for one in sweep.sets if one not in weights]
    if not total:
        return None
    shared = crowded(time.perf_counter() - began[0], time.process_time() - began[1], torch.get_num_threads())
    how += [shared] if shared else []
    return {"seconds": float(f"{total:.2g}"), "how": "; ".join(how), "machine": machine(), "data": data_together(data)}


def crowded(wall: float, processor: float, threads: int) -> str:
    """Return words for an estimate that was made beside other work, by the seconds that it took and had; "" else."""
    share = processor / (wall * threads)
    return f"beside other work, with {share:.0%} of a processor a thread: an upper bound" if share < CROWDED else ""


def main(ids: list[str]) -> None:
    """Estimate the claims and write what came of them among those that are there."""
    claims, path = all_claims(), PAPER / "estimates.json"
    measured = {entry["id"] for entry in json.loads((PAPER / "results.json").read_text(encoding="utf-8"))}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    data_dir = Path(os.environ["LOWDYN_DATA"]) if os.environ.get("LOWDYN_DATA") else None
    for name in ids or [name for name in claims if name not in measured]:
        print(name, flush=True)
        random = reads_vit(claims[name]) and not pretrained_available(data_dir)
        with random_vit(data_dir) if random else contextlib.nullcontext(data_dir) as folder:
            one = estimate(claims[name], Reproduction(Folder(PAPER), "paper", data_dir=folder), random=random)
        if one is not None:
            print(f"  {one['seconds']:g} s", flush=True)
            found = {**found, name: one}
            ordered = {key: found[key] for key in claims if key in found}
            replace_atomically(path, (json.dumps(ordered, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
