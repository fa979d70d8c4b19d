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

from lowdyn import layer_metrics
from lowdyn.networks import MLP

ASKED = {"collapse": True, "rank_tolerance": 1e-3, "distributed": True}


def case():
    """Model and samples, the same on every rank; classes come in unequal numbers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (60,), generator=generator) // torch.randint(1, 3, (60,), generator=generator)
    x = torch.randn(60, 6, generator=generator) + labels[:, None]
    return MLP((6, 16, 16, 4), generator=generator), x, labels


def main(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    measured = {}
    for wrapper in ("ddp", "fsdp"):
        model, x, labels = case()
        if wrapper == "ddp":
            wrapped = DistributedDataParallel(model)
        else:
            for layer in model.factors:
                fully_shard(layer)
            wrapped = fully_shard(model)
            assert all(isinstance(parameter, DTensor) for parameter in wrapped.parameters())
        x, labels = x[rank::2], labels[rank::2]
        batches = list(zip(x.split(11), labels.split(11), strict=True))
        metrics = layer_metrics(wrapped, batches, 4, "relu|output", balanced=False, probe=batches, **ASKED)
        measured[wrapper] = metrics.to_dict()
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
