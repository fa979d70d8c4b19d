"""One of two processes that train a model together and track it; started by test_spectra_ranks.py."""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowdyn import Spectra, Tracker
from lowdyn.networks import MLP
from lowdyn.trajectory import save

STEPS, SIZES = 3, (200, 230, 6)


def train(wrap=lambda model: model, rank=0, processes=1, budget=None):
    """Three steps of full-batch descent in float64, this process's share of the batch; the tracker."""
    model = MLP(SIZES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(12, 200, generator=generator, dtype=torch.float64), torch.arange(12) % 6
    wrapped = wrap(model)
    tracker = Tracker(wrapped, Spectra(top=2), every=1, budget=budget)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=5.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x[rank::processes]), labels[rank::processes]).backward()
        optimizer.step()
        tracker.step()
    return tracker


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.factors:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for kind, wrap in (("ddp", nn.parallel.DistributedDataParallel), ("fsdp", shard)):
        save(train(wrap, rank, 2).trajectory, folder / f"{kind}{rank}.nc")
    # With a budget the two agree on when to look; one that looked alone would wait for the other for ever.
    agreed = train(shard, rank, 2, budget=0.5 if rank else 0.9)
    (folder / f"steps{rank}").write_text(str(agreed.trajectory["step"].values.tolist()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
    # Left without Python's and torch's teardown: threads of gloo groups that Accelerate, DDP and FSDP made abort the
    # process there now and then ("terminate called without an active exception").
    os._exit(0)
