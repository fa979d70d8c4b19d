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

from lowdyn import Spectra, Tracker
from lowdyn.dynamics import DivergenceError
from lowdyn.networks import MLP
from lowdyn.training import Checkpoints, Minibatches, train
from tests.known_spectra import stand_apart

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
RESUMED = dict.fromkeys(CASES, "no") | {"bf16": "bf16"}  # name -> mixed precision; "bf16" is of minibatches


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


def tracked(accelerator, kind=Tracker, **options):
    """Train a model of which one weight is large enough for warm records, in float64, with a tracker; return it."""
    model = stand_apart(MLP((30, 200, 200, 4), generator=seeded(), dtype=torch.float64))
    inputs = torch.randn(50, 30, generator=seeded(7), dtype=torch.float64)
    tracker = kind(model, Spectra(top=2), every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options |= {"optimizer": optimizer, "tracker": tracker, "accelerator": accelerator}
    train(model, Minibatches(inputs, torch.arange(50) % 4, 16, seeded(1)), epochs=2, **options)
    return model, tracker


class Interrupted(Tracker):
    """A tracker after whose step 5 the run is interrupted."""

    def step(self):
        super().step()
        if self.steps == 5:
            raise KeyboardInterrupt


class Interruption:
    left = 5

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def accelerator_of(mode, accumulated=1, precision="no"):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    options = {"cpu": True, "gradient_accumulation_steps": accumulated, "mixed_precision": precision}
    if mode == "ddp":
        return Accelerator(**options)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=False,
        auto_wrap_policy="size_based_wrap",
        min_num_params=50,
    )
    accelerator = Accelerator(**options, fsdp_plugin=plugin)
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

        for case in RESUMED:
            for name, options in {"whole": {}, "resumed": {"tracker": Interruption()}}.items():
                told, model = taken_up(mode, case, folder / mode / case / name, options)
                found[f"{mode}, {case}, {name}"] = told
                results |= {f"{mode}, {case}, {name}/{key}": value for key, value in whole(model).items()}
        for name, kind in {"tracked": Tracker, "tracked, resumed": Interrupted}.items():
            seen, model = observed(mode, folder / mode / name, kind)
            found[f"{mode}, {name}"] = seen
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


def taken_up(mode, case, folder, options):
    """Train one case with dropout, again from its checkpoint where it is interrupted; return what is told, the model.

    An epoch is not over at the last checkpoint before the interruption.
    """
    case, precision = case if case in CASES else "minibatches", RESUMED[case]
    every = 2 if case == "accumulated unevenly" else 3
    options |= {"dropout": 0.3, "checkpoints": Checkpoints(folder, every, 2, (torch.default_generator,))}
    left = None
    while True:
        try:
            model, curve = run(case, accelerator_of(mode, CASES[case][2], precision), **options)
            return {"curve": curve.to_dict(), "left": left}, model
        except KeyboardInterrupt:
            left = options.pop("tracker").left


def observed(mode, folder, kind):
    """Train with a tracker, again where it is interrupted; return every process's records, and the model."""
    try:
        model, tracker = tracked(accelerator_of(mode), kind, checkpoints=Checkpoints(folder, 3))
    except KeyboardInterrupt:
        model, tracker = tracked(accelerator_of(mode), checkpoints=Checkpoints(folder, 3))
    everyone = [None] * PROCESSES
    torch.distributed.all_gather_object(everyone, tracker.trajectory.to_dict())
    return everyone, model


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
