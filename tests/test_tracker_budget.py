"""Records on a schedule and at a budget, and a tracker that goes on from its state."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lowdyn import LayerMetrics, Spectra, Tracker
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


class Sized(Counter):
    """A probe that records so many numbers."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __call__(self, step):
        return {"size": (("place",), [0.0] * self.size)}


def network(*sizes):
    return MLP(sizes, generator=seeded())


def metrics(classes=3, **options):
    return LayerMetrics([(gaussian(9, 4), torch.arange(9) % classes)], classes, **options)


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ((Counter(),), (Spectra(),), r"of the probes \['Counter'\], the tracker has \['Spectra'\]"),
        ((Spectra(top=2),), (Spectra(top=3),), "of Spectra with top=2, the tracker has 3"),
        ((Spectra(),), (Spectra(reference=1),), "of Spectra with reference=0, the tracker has 1"),
        ((Spectra("hidden1"),), (Spectra("hid"),), "of Spectra with layers='hidden1', the tracker has 'hid'"),
        ((Counter(), metrics()), (Counter(), metrics(pool="mean")), "of LayerMetrics with pool='flatten', .* 'mean'"),
        ((metrics(),), (metrics(probe=[(gaussian(9, 4), torch.arange(9) % 3)]),), "with probe=None, .* something else"),
        (
            (Sized(2),),
            (Sized(3),),
            r"of Sized recording size=\(\('place',\), \(2,\)\), .* has \(\('place',\), \(3,\)\)",
        ),
    ],
)
def test_a_state_of_other_probes_is_refused(there, here, message):
    state = Tracker(model(), *there).state_dict()
    tracker = Tracker(model(), *here)
    before = tracker.trajectory
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict(state)
    assert tracker.trajectory.identical(before)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (4, 5, 5, 3),
            r"over layer=\['hidden1', 'output'\] \(2 in all\), the tracker has \['hidden1', 'hidden2', .* \(3",
        ),
        ((9, 5, 3), r"over index=\[0, 1, 2, 3\] \(4 in all\), the tracker has \[0, 1, 2, 3, 4\] \(5 in all\)"),
        ((4, 6, 3), r"the state of 'hidden1' has start of \(5, 4\), the weight is \(6, 4\)"),
    ],
)
def test_a_state_of_another_model_is_refused(sizes, message):
    state = Tracker(network(4, 5, 3), Spectra(top=1)).state_dict()
    tracker = Tracker(network(*sizes), Spectra(top=1), every=1)
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict(state)
    tracker.step()
    assert not tracker.failures
    assert tracker.trajectory["move_norm"].max() == 0


def test_what_is_no_state_is_refused():
    tracker = Tracker(model(), Spectra(top=1))
    state = tracker.state_dict()
    with pytest.raises(
        ValueError, match=r"no state of a Tracker .* lacks probes.* holds \[\]; pass what its state_dict"
    ):
        tracker.load_state_dict({})
    with pytest.raises(ValueError, match="lacks the records exact of Spectra"):
        tracker.load_state_dict({name: value for name, value in state.items() if name != "0.record.exact"})
    with pytest.raises(ValueError, match=r"'hidden1' lacks left.single_bound; pass one that this version"):
        tracker.load_state_dict({name: value for name, value in state.items() if "0.left.single_bound" not in name})
    with pytest.raises(ValueError, match="holds nothing of 'hidden1'"):
        tracker.load_state_dict({name: value for name, value in state.items() if ".look." not in name})
