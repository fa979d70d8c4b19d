"""What a step costs: operations and bytes that can be counted by hand, and nothing changed by counting."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lowdyn import factorize
from lowdyn.lowrank.cost import step_costs
from lowdyn.networks import MLP
from tests.cases import built, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
X, Y = gaussian(16, 20, dtype=torch.float32), torch.arange(16) % 5


def loss(model):
    return cross_entropy(model(X), Y)


def one(model, loss=loss):
    return step_costs({"one": model}, loss, repeats=1)["one"]


def test_operations_are_those_of_three_products_a_layer():
    layers = [(40, 20), (30, 40), (5, 30)]
    flops = one(MLP((20, 40, 30, 5), generator=seeded())).flops
    # Forward, gradient of the weight, and gradient of the input, which the first layer does without.
    assert flops == 2 * 16 * (3 * sum(m * n for m, n in layers) - 40 * 20)


def test_memory_is_that_of_parameters_gradients_and_adam():
    model = built(lambda: nn.Linear(1000, 1000, bias=False))
    inputs = torch.ones(1, 1000)
    weight = 4 * 1000 * 1000
    peak = one(model, lambda net: net(inputs).sum()).peak_bytes
    # Weight, gradient, two moments, and Adam's two temporaries, the root and the root over the correction.
    assert 6 * weight <= peak <= 6 * weight + 50_000


def test_memory_is_what_the_allocator_says():
    profiler = pytest.importorskip("torch.profiler")
    model = MLP((20, 300, 200, 5), generator=seeded())
    measured = one(model).peak_bytes
    adam = torch.optim.Adam(model.parameters())
    for recorded in (False, True):
        adam.zero_grad()
        with profiler.profile(profile_memory=True) if recorded else torch.enable_grad() as profile:
            loss(model).backward()
            adam.step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    held = 3 * 4 * sum(p.numel() for p in model.parameters())
    assert_close(float(measured), float(held + peak), rtol=1e-3, atol=0)


def test_what_is_frozen_needs_no_gradient():
    model = MLP((20, 300, 300, 5), generator=seeded())
    free = one(model)
    model.hidden2.weight.requires_grad_(False)
    frozen = one(model)
    assert free.flops - frozen.flops == 2 * 16 * 300 * 300
    assert free.peak_bytes - frozen.peak_bytes >= 3 * 4 * 300 * 300


def test_measuring_changes_nothing():
    model = built(lambda: nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 5)))
    before = copy.deepcopy(model.state_dict())
    step_costs({"a": model, "b": model}, loss, repeats=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_factorize_measures_before_and_after():
    model = MLP((20, 200, 200, 5), generator=seeded())
    table = factorize(model, ranks=4, loss=loss)
    before, after = table.cost
    assert before.flops - after.flops == 3 * 2 * 16 * (200 * 200 - 4 * 400)
    assert before.peak_bytes > after.peak_bytes
    assert before.seconds > 0 < after.seconds
    text = str(table)
    assert "GFLOPs a step" in text
    assert "peak memory of a step" in text
    assert "time of a step" in text


class Reads(nn.Module):
    """Reads the weight of a layer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 5)

    def forward(self, x):
        return self.last(self.middle(self.first(x)) * self.middle.weight.norm())


def test_a_model_that_no_longer_runs_is_put_back():
    model = built(Reads)
    with pytest.raises(AttributeError, match="weight"):
        factorize(model, ranks=4, loss=loss)
    assert type(model.middle) is nn.Linear
    model(X)


@pytest.mark.parametrize("repeats", [0, 1.5])
def test_repeats_are_checked(repeats):
    with pytest.raises((TypeError, ValueError), match="repeats must be"):
        step_costs({}, loss, repeats=repeats)
