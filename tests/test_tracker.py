import copy
import json
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import lowdyn
from lowdyn import LayerMetrics, Spectra, Tracker
from lowdyn.networks import MLP
from lowdyn.observe import LogSpaced
from tests.cases import built, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


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


# --- schedule and budget


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("lowdyn.observe.tracker.perf_counter", made)
    return made


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


def vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes)
    return transformers.ViTForImageClassification(config)


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


# --- failures


def stepped(tracker, steps):
    for _ in range(steps):
        tracker.step()


class Failing(Counter):
    """A counter that fails at some steps."""

    def __init__(self, *steps, error=RuntimeError):
        super().__init__()
        self.steps, self.error = steps, error

    def __call__(self, step):
        if step in self.steps:
            raise self.error("no memory left")
        return {"other": ((), float(step))}


def test_a_look_that_fails_is_written_down_and_training_goes_on():
    told = []
    tracker = Tracker(model(), Counter(), Failing(2, 3), every=1, on_record=lambda *record: told.append(record))
    with pytest.warns(UserWarning, match="Failing failed at step 2, because RuntimeError: no memory left") as caught:
        stepped(tracker, 4)
    assert len(caught) == 1
    assert tracker.failures == [
        {"step": step, "probe": "Failing", "because": "RuntimeError: no memory left"} for step in (2, 3)
    ]
    trajectory = tracker.trajectory
    assert json.loads(trajectory.attrs["failed"]) == tracker.failures
    assert trajectory["look"].values.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(trajectory["other"], [0, 1, np.nan, np.nan, 4])
    assert [sorted(record) for _, record in told] == [["look", "other"]] * 2 + [["look"]] * 2 + [["look", "other"]]


def test_not_even_a_warning_made_an_error_ends_training():
    tracker = Tracker(model(), Failing(1), every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.step()
    assert len(tracker.failures) == 1


def test_weights_that_are_not_finite_are_a_failed_look():
    network = model()
    tracker = Tracker(network, Spectra(top=1), every=1)
    network.weights[0].fill_(torch.nan)
    with pytest.warns(UserWarning, match="Spectra failed at step 1"):
        tracker.step()
    assert tracker.trajectory["step"].values.tolist() == [0]


def test_a_look_that_suddenly_records_something_else_is_left_out():
    probe = Counter()
    tracker = Tracker(model(), probe, every=1)
    probe.__class__ = type("Counter", (Counter,), {"__call__": lambda self, step: {"new": ((), 1)}})
    with pytest.warns(UserWarning, match=r"this record holds \['new'\]"):
        tracker.step()
    assert tracker.trajectory["look"].values.tolist() == [1]


def test_a_logger_that_fails_is_written_down():
    def log(step, record):
        if step == 1:
            raise OSError("disk full")

    tracker = Tracker(model(), Counter(), every=1, on_record=log)
    with pytest.warns(UserWarning, match="on_record failed at step 1, because OSError: disk full"):
        tracker.step()
    assert tracker.trajectory["step"].values.tolist() == [0, 1]


def test_what_is_asked_of_the_user_is_not_swallowed():
    with pytest.raises(RuntimeError, match="no memory"):
        Tracker(model(), Failing(0))
    with pytest.raises(ValueError, match="two probes record look; give one of them a prefix"):
        Tracker(model(), Counter(), Counter())
    with pytest.raises(ValueError, match="budget must be"):
        Tracker(model(), Counter(), budget=2.0)
    tracker = Tracker(model(), Failing(1, error=KeyboardInterrupt), every=1)
    with pytest.raises(KeyboardInterrupt):
        tracker.step()


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
