"""What two processes of training end with; run by test_distributed.py under torchrun and under accelerate launch.

Accelerate 1.15 turns FSDP2 on for accelerators only. So that its own FSDP2 path runs on the CPU, where torch's
``fully_shard`` works, the process is declared one of it by hand.
"""

import json
import os
import sys
from pathlib import Path

import safetensors.torch
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, GradientState
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from lowdyn.dynamics import DivergenceError
from lowdyn.networks import MLP
from lowdyn.training import Checkpoints, Minibatches, train

PROCESSES = 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(50, 3, generator=seeded(7))
Y = (X[:, 0] > 0).long()
# name -> (samples, batch size of an update by Minibatches or of a process by a DataLoader, accumulated batches)
CASES = {
    "minibatches": (50, 16, 1),  # the last has 2
    "one sample left": (49, 16, 1),  # the second process has none of it
    "accumulated": (50, 6, 2),
    "accumulated unevenly": (49, 6, 4),
    "loader": (50, 8, 1),  # the last round is filled up with repeated samples
    "loader, accumulated": (50, 4, 2),
    "loader of a part": (37, 8, 1),  # every second of them
}


def loader_of(case, processes):
    samples, size, _ = CASES[case]
    if "loader" in case:
        data = TensorDataset(X[:samples], Y[:samples])
        if "part" in case:
            sampler = SubsetRandomSampler(range(0, samples, 2), generator=seeded(1))
            return DataLoader(data, size * PROCESSES // processes, sampler=sampler, generator=seeded(2))
        return DataLoader(data, size * PROCESSES // processes, shuffle=True, generator=seeded(1))
    return Minibatches(X[:samples], Y[:samples], size, seeded(1))


def run(case, accelerator, rate=0.05, dropout=0.0, **options):
    """Train one case; return (model, curve). Dropout draws differently in every process."""
    model = MLP((3, 8, 8, 2), generator=seeded())
    if dropout:
        model.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        torch.manual_seed(accelerator.process_index)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    loader = loader_of(case, accelerator.num_processes)
    options = {"epochs": 3, "optimizer": optimizer, "scheduler": scheduler, "accelerator": accelerator, **options}
    return model, train(model, loader, **options)


def whole(model):
    """The weights of a model, gathered where they are spread."""
    gathered = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state(model)}
    return {name: value.detach().clone() for name, value in gathered.items()}


def state(model):
    return model.state_dict().items()


class Interruption:
    left = 5

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def accelerator_of(mode, accumulated=1):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if mode == "ddp":
        return Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=False,
        auto_wrap_policy="size_based_wrap",
        min_num_params=50,
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated, fsdp_plugin=plugin)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def main(folder):
    results, found = {}, {}
    for mode in ("ddp", "fsdp2"):
        for case, (_, _, accumulated) in CASES.items():
            accelerator = accelerator_of(mode, accumulated)
            model, curve = run(case, accelerator)
            spread = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
            found[f"{mode}, {case}"] = {"curve": curve.to_dict(), "spread": spread}
            results |= {f"{mode}, {case}/{name}": value for name, value in whole(model).items()}

        for name, options in {"whole": {}, "resumed": {"tracker": Interruption()}}.items():
            options |= {
                "dropout": 0.3,
                "checkpoints": Checkpoints(folder / mode / name, 3, 2, (torch.default_generator,)),
            }
            while True:
                try:
                    model, curve = run("minibatches", accelerator_of(mode), **options)
                    break
                except KeyboardInterrupt:
                    found[f"{mode}, interrupted"] = options.pop("tracker").left
            found[f"{mode}, {name}"] = {"curve": curve.to_dict()}
            results |= {f"{mode}, {name}/{key}": value for key, value in whole(model).items()}
        accelerator = accelerator_of(mode)
        try:
            run("minibatches", accelerator, rate=1e30)
            diverged = ""
        except DivergenceError as error:
            diverged = str(error)
        everywhere = accelerator.gather(torch.tensor([len(diverged)])).tolist()
        found[f"{mode}, diverged"] = {"message": diverged, "everywhere": everywhere}
    finish(accelerator, folder, results, found)


def configured(folder):
    """One case on whatever Accelerate's own configuration, as ``accelerate launch`` hands it on, says."""
    accelerator = Accelerator()
    model, curve = run("minibatches", accelerator)
    about = {"curve": curve.to_dict(), "processes": accelerator.num_processes, "device": accelerator.device.type}
    finish(accelerator, folder, {f"launched/{name}": value for name, value in whole(model).items()}, about)


def finish(accelerator, folder, results, found):
    if accelerator.is_main_process:
        safetensors.torch.save_file(results, folder / "results.safetensors")
        (folder / "results.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    {"all": main, "configured": configured}[sys.argv[2]](Path(sys.argv[1]))
    # Left without Python's and torch's teardown: threads of gloo groups that Accelerate, DDP and FSDP made abort the
    # process there now and then ("terminate called without an active exception").
    os._exit(0)
