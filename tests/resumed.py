"""Small runs of training that are interrupted and taken up again from their checkpoints."""

import pytest
import torch
from torch.testing import assert_close

from lowdyn import train
from lowdyn.checkpoints import Checkpoints
from lowdyn.networks import MLP
from lowdyn.training import Minibatches
from tests.cases import gaussian, seeded

X = gaussian(50, 3, dtype=torch.float32)
Y = (X[:, 0] > 0).long()


class Stop(Exception):
    """An interruption."""


def run(folder, *, epochs=3, every=None, stop=None, rate="cosine", loader=None, keep=2, model=None, **options):
    """Train a small model; after `stop` updates the run is interrupted. Returns (model, curve)."""
    model = model or MLP((3, 8, 2), generator=seeded())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    schedules = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12),
        "steps": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5]),
        "cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12),
        "plateau": lambda: Plateau(optimizer),
        "sequence": lambda: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer),
                torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3]),
            ],
            [4],
        ),
        None: lambda: None,
    }
    if stop is not None:
        options["tracker"] = Interruption(stop)
    checkpoints = Checkpoints(folder, every, keep, options.pop("generators", ()))
    loader = loader or Minibatches(X, Y, 16, seeded(1))
    curve = train(
        model,
        loader,
        optimizer=optimizer,
        epochs=epochs,
        scheduler=schedules[rate](),
        checkpoints=checkpoints,
        **options,
    )
    return model, curve


class Plateau:
    """ReduceLROnPlateau on values of its own."""

    def __init__(self, optimizer):
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

    def step(self):
        self.scheduler.step(1.0)

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)


class Interruption:
    def __init__(self, at):
        self.left = at

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise Stop


def interrupted(folder, stop, **options):
    with pytest.raises(Stop):
        run(folder, stop=stop, **options)


def assert_same_run(first, second):
    for parameter, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert_close(parameter, other, rtol=0, atol=0)
    assert first[1].identical(second[1])
