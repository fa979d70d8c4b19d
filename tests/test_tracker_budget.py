"""Records on a schedule and at a budget, and a tracker that goes on from its state."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lowdyn import Spectra, Tracker
from lowdyn.networks import MLP
from lowdyn.observe import LogSpaced
from tests.cases import built, gaussian, seeded
from tests.tracked import Clock, Costly, Counter, Failing, model, vit

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- schedule and budget


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("lowdyn.observe.tracker.perf_counter", made)
    return made


def test_a_log_spaced_schedule():
    tracker = Tracker(model(), Counter(), every=LogSpaced(2))
    for _ in range(100):
        tracker.step()
    assert tracker.trajectory["step"].values.tolist() == [0, 1, 3, 10, 32, 100]
    assert tracker.trajectory.attrs["every"] == "LogSpaced(per_decade=2)"


def test_a_budget_spaces_the_records(clock):
    tracker = Tracker(model(), Costly(Counter(), clock, 5.0, 1.0), every=1, budget=0.05)
    clock.now += 1000.0  # loading data is not training
    shares = []
    for _ in range(1000):
        clock.now += 1.0
        tracker.step()
        shares.append(tracker.share)
    trajectory = tracker.trajectory
    # The first and one as dear are 10 s of 200; then one of 1 s every 20 s.
    assert trajectory["step"].values[1] in range(200, 204)
    assert set(np.diff(trajectory["step"].values[2:])) == {20}
    assert len(trajectory["step"]) == 41
    assert max(shares[201:]) <= 0.05
    clock.now += 1000.0  # and what comes after the last step is none either
    assert trajectory.attrs["share"] == shares[-1] == tracker.share == tracker.trajectory.attrs["share"]
    assert trajectory.attrs["budget"] == 0.05


def test_a_budget_leaves_out_and_does_not_move(clock):
    tracker = Tracker(model(), Costly(Counter(), clock, 1.0, 1.0), every=7, budget=0.1)
    for _ in range(100):
        clock.now += 1.0
        tracker.step()
    steps = tracker.trajectory["step"].values
    assert len(steps) > 5
    assert (steps % 7 == 0).all()


def mlp():
    return MLP((64, *[32] * 9, 3), generator=seeded())


@pytest.mark.parametrize(("build", "matrices"), [(mlp, 10), (vit, 14)])
def test_every_matrix_at_a_budget_and_not_a_bit_changes(build, matrices, clock):
    def trained(tracked):
        network = built(build)
        x, labels = gaussian(12, 1, 8, 8).float(), torch.arange(12) % 3
        tracker = None
        if tracked:
            tracker = Tracker(network, Costly(Spectra(), clock, 0.3, 0.1), every=1, budget=0.05)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(40):
            optimizer.zero_grad()
            outputs = network(x)
            nn.functional.cross_entropy(getattr(outputs, "logits", outputs), labels).backward()
            optimizer.step()
            clock.now += 1.0
            if tracker:
                tracker.step()
        return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}, tracker

    (weights, tracker), (expected, _) = trained(True), trained(False)
    assert weights == expected
    trajectory = tracker.trajectory
    assert trajectory.sizes["layer"] == matrices
    assert trajectory.sizes["step"] >= 8
    assert tracker.share <= 0.05
    assert trajectory["move_norm"][-1].min() > 0


# --- resume


def test_a_tracker_goes_on_from_its_state(clock):
    def run(resumed):
        network = MLP((200, 230, 3), generator=seeded())

        clock.now = 0.0
        tracked = Tracker(network, Spectra(top=2), Failing(20), every=2, budget=0.5)
        for step in range(30):
            if resumed and step == 13:
                state = safetensors.torch.load(safetensors.torch.save(tracked.state_dict()))
                tracked = Tracker(network, Spectra(top=2), Failing(20), every=2, budget=0.5)
                tracked.load_state_dict(state)
            clock.now += 1.0
            network.weights[0].add_(0.002 * gaussian(230, 200, seed=step).float())
            tracked.step()
        return tracked.trajectory.drop_attrs(), tracked.failures

    with pytest.warns(UserWarning, match="Failing failed"):
        (expected, failures), (resumed, again) = run(False), run(True)
    assert resumed.identical(expected)
    assert failures == again
    assert len(failures) == 1


def test_a_state_of_other_probes_is_refused():
    state = Tracker(model(), Counter()).state_dict()
    with pytest.raises(ValueError, match=r"of the probes \['Counter'\], the tracker has \['Spectra'\]"):
        Tracker(model(), Spectra()).load_state_dict(state)
