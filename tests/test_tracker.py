"""A tracker records what its probes see and changes nothing in training."""

import copy
import os
import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import lowdyn
from lowdyn import LayerMetrics, Spectra, Tracker
from lowdyn.networks import MLP
from tests.cases import gaussian, seeded
from tests.tracked import Counter, model

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6]), (100, [0])])
def test_the_start_and_every_so_many_steps_are_recorded(every, expected):
    probe = Counter()
    tracker = Tracker(model(), probe, every=every)
    for _ in range(7):
        tracker.step()
    assert tracker.steps == 7
    assert probe.looks == expected
    assert tracker.trajectory["step"].values.tolist() == expected
    assert tracker.trajectory.attrs == {"every": every, "lowdyn": lowdyn.__version__}


def test_recording_by_hand_happens_once_a_step():
    probe = Counter()
    tracker = Tracker(model(), probe, every=2)
    tracker.record()
    for _ in range(3):
        tracker.step()
    tracker.record()
    tracker.record()
    tracker.step()
    tracker.record()
    assert probe.looks == [0, 2, 3, 4]
    assert tracker.trajectory["look"].values.tolist() == [1, 2, 3, 4]


def test_the_weights_of_the_moment_are_recorded():
    network = model()
    tracker = Tracker(network, Spectra(top=1), every=1)
    expected = []
    for _ in range(3):
        expected.append([np.linalg.svd(w.double().numpy(), compute_uv=False) for w in network.weights])
        network.weights[0].mul_(2)
        network.weights[1].add_(gaussian(3, 5).float())
        tracker.step()
    seen = tracker.trajectory["singular_values"]
    for step, layers in enumerate(expected):
        for layer, values in enumerate(layers):
            np.testing.assert_allclose(seen[step, layer, : len(values)], values, rtol=1e-12)


def test_the_trajectory_so_far_is_not_changed_by_later_steps():
    network = model()
    tracker = Tracker(network, Spectra(top=1), every=1)
    early = tracker.trajectory
    before = copy.deepcopy(early)
    network.weights[0].zero_()
    tracker.step()
    assert early.identical(before)
    assert tracker.trajectory.isel(step=[0]).drop_attrs().identical(before.drop_attrs())


def test_different_probes_share_a_trajectory():
    loader = [(gaussian(9, 4), torch.arange(9) % 3)]
    tracker = Tracker(model(), Spectra(top=1), LayerMetrics(loader, 3), every=1)
    tracker.step()
    trajectory = tracker.trajectory
    assert trajectory["singular_values"].dims == ("step", "layer", "index")
    assert trajectory["class_separation"].dims == ("step", "features")
    assert trajectory["layer"].values.tolist() == ["hidden1", "output"]
    assert trajectory["features"].values.tolist() == ["input", "hidden1", "output"]


def test_two_spectra_with_a_prefix_share_a_trajectory():
    tracker = Tracker(model(), Spectra(top=1), Spectra(top=2, prefix="two_"), every=1)
    trajectory = tracker.trajectory
    np.testing.assert_array_equal(trajectory["singular_values"], trajectory["two_singular_values"])


@pytest.mark.parametrize("prefix", ["other_", ""])
def test_two_spectra_of_different_layers_are_not_mixed_up(prefix):
    network = MLP((4, 4, 4), generator=seeded())
    try:
        tracker = Tracker(network, Spectra("hidden1", top=1), Spectra("output", top=1, prefix=prefix))
    except ValueError:
        return  # refused: as good
    values = tracker.trajectory["singular_values"]
    assert values["layer"].values.tolist() == ["hidden1"]
    np.testing.assert_allclose(values[0, 0], np.linalg.svd(network.weights[0].double(), compute_uv=False), rtol=1e-12)


def test_a_probe_may_hand_over_the_live_weights():
    class Live(Counter):
        def begin(self, model):
            self.model = model
            return self

        def __call__(self, step):
            return {"weight": (("out", "in"), self.model.weights[0].numpy())}

    network = model()
    tracker = Tracker(network, Live(), every=1)
    network.weights[0].zero_()
    tracker.step()
    assert np.abs(tracker.trajectory["weight"][0]).max() > 0


def test_tracking_changes_nothing_in_training():
    # Dropout draws from the global generator: a tracker that drew from it, or left eval mode behind, would show.
    def trained(tracked):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
            x, labels = torch.randn(12, 4), torch.arange(12) % 3
            probes = Spectra(top=1), LayerMetrics([(x, labels)], 3)
            tracker = Tracker(network, *probes, every=1) if tracked else None
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), labels).backward()
                optimizer.step()
                if tracker:
                    tracker.step()
            return [value.tolist() for value in network.state_dict().values()]

    assert trained(tracked=True) == trained(tracked=False)


def test_a_tracker_needs_something_to_look_at():
    with pytest.raises(ValueError, match=r"at least one probe, such as Spectra\(\)"):
        Tracker(model())


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.5, TypeError)])
def test_every_is_a_count(every, error):
    with pytest.raises(error, match="every must be"):
        Tracker(model(), Counter(), every=every)


def test_mixed_precision_is_tracked_and_not_a_bit_changes():
    def trained(tracked):
        network = MLP((8, 16, 3), generator=seeded())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        tracker = Tracker(network, Spectra(top=1), every=1) if tracked else None
        for step in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(network(gaussian(6, 8, seed=step).float()), torch.arange(6) % 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if tracker:
                tracker.step()
        if tracker:
            expected = np.linalg.svd(network.weights[0].double(), compute_uv=False)
            np.testing.assert_allclose(tracker.trajectory["singular_values"][-1, 0], expected, rtol=1e-12)
        return [weight.tolist() for weight in network.weights]

    assert trained(True) == trained(False)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, of inductor
def test_a_model_that_inductor_compiled_trains_as_without_a_tracker_and_is_seen():
    torch.compiler.reset()
    x, labels = gaussian(12, 6), torch.arange(12) % 3
    probes = Spectra(top=1), LayerMetrics([(x, labels)], 3, "relu|output")
    ends, trackers = [], []
    for compiled, watched in ((True, False), (True, True), (False, True)):
        plain = MLP((6, 5, 3), generator=seeded(), dtype=torch.float64)
        trained = torch.compile(plain) if compiled else plain
        tracker = Tracker(trained, *probes, every=2) if watched else None
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(x), labels).backward()
            optimizer.step()
            if tracker is not None:
                tracker.step()
        ends.append([weight.clone() for weight in plain.weights])
        trackers.append(tracker)
    assert all(torch.equal(*pair) for pair in zip(*ends[:2], strict=True))
    ours, eager = (tracker.trajectory for tracker in trackers[1:])
    assert "failed" not in ours.attrs
    assert ours["step"].values.tolist() == [0, 2, 4]
    assert ours["layer"].values.tolist() == ["hidden1", "output"]
    # Fused kernels round otherwise than eager ones do.
    xr.testing.assert_allclose(ours, eager, rtol=1e-9, atol=1e-12)
