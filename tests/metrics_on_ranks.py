"""One rank of two: metrics of a model wrapped by DDP or FSDP2 on its share of the samples, written as JSON.

Run by test_metrics_ranks.py: ``python metrics_on_ranks.py <rank> <folder>``.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lowdyn import LayerMetrics, Tracker, layer_metrics
from lowdyn.networks import MLP
from lowdyn.observe import tracker as tracker_module

ASKED = {"collapse": True, "rank_tolerance": 1e-3, "distributed": True}


def case():
    """Model and samples, the same on every rank; classes come in unequal numbers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (60,), generator=generator) // torch.randint(1, 3, (60,), generator=generator)
    x = torch.randn(60, 6, generator=generator) + labels[:, None]
    return MLP((6, 16, 16, 4), generator=generator), x, labels


def wrapped_by(wrapper, model):
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    for layer in model.factors:
        fully_shard(layer)
    sharded = fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    return sharded


def raised(wrapper, batches, **options):
    """What metrics of these batches fail with."""
    try:
        layer_metrics(wrapped_by(wrapper, case()[0]), batches, 4, **{"distributed": True, **options})
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def broken(batches):
    yield batches[0]
    raise OSError("no such disk")


def failures(rank, wrapper, batches):
    """What this rank is told of what goes wrong in the second batch of one rank."""
    (x, labels), good = batches[1], batches
    nan = [batches[0], (x * torch.nan, labels), *batches[2:]] if rank else good
    label = good if rank else [batches[0], (x, labels + 4), *batches[2:]]
    found = {
        "nan": raised(wrapper, nan),
        "label": raised(wrapper, label),
        "probe": raised(wrapper, good, probe=label),
    }
    found["loader"] = raised(wrapper, broken(batches) if rank else good)
    found["shape"] = raised(wrapper, [batches[0], (x[0, 0], labels)] if rank else good)
    found["kind"] = raised(wrapper, [batches[0], batches[1][0]] if rank else good)
    if wrapper == "ddp":
        found["layers"] = raised(wrapper, good, layers="relu" if rank else "output")
    else:
        found["fewer"] = raised(wrapper, good[1:] if rank else good)
        found["none"] = raised(wrapper, good if rank else [])
        found["probe loader"] = raised(wrapper, good, probe=broken(batches) if rank else good)
        found["later"] = tracked_until(rank, batches)
    return found


def tracked_until(rank, batches):
    """The steps at which a sharded model is looked at, whose loader fails on one rank in the middle; and why not."""

    class Disk(list):
        gone = False

        def __iter__(self):
            return broken(batches) if rank and self.gone else super().__iter__()

    disk = Disk(batches)
    tracker = Tracker(wrapped_by("fsdp", case()[0]), LayerMetrics(disk, 4, distributed=True), every=1)
    for step in range(1, 5):
        disk.gone = step == 2
        tracker.step()
    return {"steps": tracker.trajectory["step"].values.tolist(), "failures": tracker.failures}


class Ticking:
    """Seconds that pass where the test says so."""

    now = 0.0

    def __call__(self):
        return self.now


def tracked(rank, batches):
    """The steps at which a rank looks at a budget: training takes one of them five times as long as the other."""
    clock = tracker_module.perf_counter = Ticking()

    def look(step, record):
        clock.now += 1.0

    model = wrapped_by("ddp", case()[0])
    probe = LayerMetrics(batches, 4, distributed=True)
    tracker = Tracker(model, probe, every=1, budget=0.5, on_record=look)
    for step in range(1, 13):
        clock.now += 1.0 + 4 * rank
        if step == 6:  # from here on one rank has nothing to look at
            batches[0] = (batches[0][0] * (torch.nan if rank else 1.0), batches[0][1])
        tracker.step()
    return {"steps": tracker.trajectory["step"].values.tolist(), "failures": tracker.failures}


def main(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    measured = {}
    for wrapper in ("ddp", "fsdp"):
        model, x, labels = case()
        wrapped = wrapped_by(wrapper, model)
        x, labels = x[rank::2], labels[rank::2]
        batches = list(zip(x.split(11), labels.split(11), strict=True))
        metrics = layer_metrics(wrapped, batches, 4, "relu|output", balanced=False, probe=batches, **ASKED)
        measured[wrapper] = metrics.to_dict()
        measured[f"{wrapper} failures"] = failures(rank, wrapper, batches)
    measured["tracked"] = tracked(rank, list(batches))
    alone = layer_metrics(case()[0], batches, 4, "relu")
    measured["share"] = alone.attrs["samples"]
    try:
        layer_metrics(case()[0], batches if rank else [], 4, distributed=True)
    except ValueError as error:
        measured["empty"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(measured))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    # Left without Python's and torch's teardown: threads of gloo groups that Accelerate, DDP and FSDP made abort the
    # process there now and then ("terminate called without an active exception").
    os._exit(0)
