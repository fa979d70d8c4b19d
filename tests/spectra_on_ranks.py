"""One of two processes that train a model together and track it; started by test_spectra_ranks.py."""

import json
import os
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowdyn import Spectra, Tracker
from lowdyn.networks import MLP
from lowdyn.observe import tracker as tracker_module
from lowdyn.observe.following import Followed
from lowdyn.trajectory import save
from tests.known_spectra import stand_apart

STEPS, SIZES = 3, (200, 230, 6)


def train(wrap=lambda model: model, rank=0, processes=1, steps=STEPS, **options):
    """Three steps of full-batch descent in float64, this process's share of the batch; the tracker."""
    model = stand_apart(MLP(SIZES, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(12, 200, generator=generator, dtype=torch.float64), torch.arange(12) % 6
    wrapped = wrap(model)
    tracker = Tracker(wrapped, Spectra(top=2), every=1, **options)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x[rank::processes]), labels[rank::processes]).backward()
        optimizer.step()
        tracker.step()
    return tracker


class Pace:
    """Training that takes one process five times as long as the other, and looks that take both a second."""

    now = 0.0

    def __init__(self, rank):
        self.rank = rank

    def __call__(self):
        return self.now

    def trained(self, *arguments):
        self.now += 1.0 + 4 * self.rank

    def looked(self, step, record):
        self.now += 1.0


def at_a_budget(wrap, rank):
    """The steps looked at: the two agree, for one that looked alone would wait for the other for ever."""
    pace = tracker_module.perf_counter = Pace(rank)

    def timed(model):
        model.register_forward_hook(pace.trained)
        return wrap(model)

    tracker = train(timed, rank, 2, steps=9, budget=0.5, on_record=pace.looked)
    tracker_module.perf_counter = perf_counter
    return tracker.trajectory["step"].values.tolist()


class Counted:
    """The names of the weights that were looked at in this process, in order."""

    def __init__(self):
        self.shapes, look = [], Followed.look

        def counted(followed, weight, step):
            self.shapes.append(list(weight.shape))
            return look(followed, weight, step)

        Followed.look = counted


def failing(rank):
    """One layer is no longer finite from the first step on: who records what, and whether training goes on."""
    tracker = train(lambda model: damaged(shard(model)), rank, 2)
    return {"steps": tracker.trajectory["step"].values.tolist(), "failures": tracker.failures}


def damaged(model):
    def damage(*arguments):
        with torch.no_grad():
            model.output.weight.fill_(torch.nan)

    model.register_forward_hook(damage)
    return model


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.factors:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def shard_last(model):
    """The first weight stays whole."""
    fully_shard(model.factors[-1], mesh=init_device_mesh("cpu", (2,)))
    return model


def state_of(tracker):
    """The state in plain numbers, but for what differs from clock to clock; vectors without their sign."""
    return {
        name: value.double().abs().flatten().tolist()
        for name, value in tracker.state_dict().items()
        if ".look." in name
    }


def main(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    counted = Counted()
    for kind, wrap in (("ddp", nn.parallel.DistributedDataParallel), ("fsdp", shard)):
        counted.shapes.clear()
        tracker = train(wrap, rank, 2)
        save(tracker.trajectory, folder / f"{kind}{rank}.nc")
        looked = {"shapes": counted.shapes, "state": state_of(tracker)}
        (folder / f"{kind}{rank}.json").write_text(json.dumps(looked))
    (folder / f"failing{rank}.json").write_text(json.dumps(failing(rank)))
    for kind, wrap in (("steps", shard), ("partly", shard_last)):
        (folder / f"{kind}{rank}").write_text(str(at_a_budget(wrap, rank)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
    # Left without Python's and torch's teardown: threads of gloo groups that Accelerate, DDP and FSDP made abort the
    # process there now and then ("terminate called without an active exception").
    os._exit(0)
