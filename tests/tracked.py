"""Models to track, probes that count, fail or take their time, and a clock that a test turns."""

import pytest

from lowdyn.networks import MLP
from tests.cases import seeded


def model():
    return MLP((4, 5, 3), generator=seeded())


class Counter:
    """A probe that counts its looks."""

    def __init__(self):
        self.coords, self.looks = {}, []

    def begin(self, model):
        return self

    def __call__(self, step):
        self.looks.append(step)
        return {"look": ((), len(self.looks))}


class Failing(Counter):
    """A counter that fails at some steps."""

    def __init__(self, *steps, error=RuntimeError):
        super().__init__()
        self.steps, self.error = steps, error

    def __call__(self, step):
        if step in self.steps:
            raise self.error("no memory left")
        return {"other": ((), float(step))}


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Costly:
    """Another probe that takes its time: so much at first, and so much later."""

    def __init__(self, probe, clock, first, later):
        self.probe, self.clock, self.first, self.later = probe, clock, first, later

    def begin(self, model):
        self.look = self.probe.begin(model)
        self.coords = self.look.coords
        return self

    def __call__(self, step):
        self.clock.now += self.later if step else self.first
        return self.look(step)


def vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes)
    return transformers.ViTForImageClassification(config)
