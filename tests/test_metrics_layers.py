"""Which layers metrics see of a model, that they leave it as it was, and data that they refuse."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lowdyn import DeepLinearNetwork, LayerMetrics, Tracker, layer_metrics
from lowdyn.networks import MLP
from lowdyn.observe import layer_features, layer_moments
from lowdyn.observe.draws import draws_undone
from lowdyn.training import Minibatches
from tests.cases import built, gaussian, seeded
from tests.clusters import assert_statistics, clusters, look_through

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- which layers


def test_leaf_modules_with_weights_are_taken_in_the_order_of_their_calls():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4, 3), nn.Linear(2, 4)
            self.norm, self.act, self.unused = nn.LayerNorm(4), nn.ReLU(), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.act(self.norm(self.first(x))))

    metrics = layer_metrics(built(Crossed), [(gaussian(6, 2), torch.arange(6) % 3)], 3)
    assert metrics["layer"].values.tolist() == ["input", "first", "norm", "last"]


def test_a_pattern_chooses_among_all_modules():
    model = MLP((4, 5, 5, 3), generator=seeded())
    batch = [(gaussian(6, 4), torch.arange(6) % 3)]
    assert layer_metrics(model, batch, 3, "relu")["layer"].values.tolist() == ["input", "relu1", "relu2"]
    with pytest.raises(ValueError, match=r"no layer matches 'conv': this model has self, hidden1, relu1, .* output"):
        layer_metrics(model, batch, 3, "conv")


def test_a_module_called_twice_appears_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    model, x, labels = built(Twice), gaussian(9, 3, dtype=torch.float32), torch.arange(9) % 3
    metrics = layer_metrics(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], 3)
    assert metrics["layer"].values.tolist() == ["input", "layer", "layer#2"]
    with torch.no_grad():
        # The batches of the pass above, cut elsewhere: float32 products may round otherwise.
        assert_statistics(metrics, "layer#2", model(x), labels, tolerance=1e-5)


def test_images_and_sequences_are_flattened():
    model = built(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))).double()
    x, labels = gaussian(9, 1, 4, 4), torch.arange(9) % 3
    metrics = layer_metrics(model, [(x, labels)], 3)
    with torch.no_grad():
        assert_statistics(metrics, "input", x.flatten(1), labels)
        assert_statistics(metrics, "0", model[0](x).flatten(1), labels)


def test_token_ids_stay_whole_numbers():
    model = built(lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 3)))
    ids, labels = torch.randint(11, (9, 3), generator=seeded()), torch.arange(9) % 3
    metrics = layer_metrics(model, [(ids, labels)], 3)
    assert metrics["layer"].values.tolist() == ["input", "0", "2"]


def test_a_module_that_returns_several_things_is_seen_by_the_first():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    model, x, labels = built(Pair), gaussian(6, 2, 3, dtype=torch.float32), torch.arange(6) % 3
    metrics = layer_metrics(model, [(x, labels)], 3, "rnn")
    with torch.no_grad():
        assert_statistics(metrics, "rnn", model(x).flatten(1), labels)


def test_an_activation_in_place_does_not_rewrite_the_layer_before_it():
    model = built(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))).double()
    x, labels = gaussian(9, 4), torch.arange(9) % 3
    with torch.no_grad():
        assert_statistics(layer_metrics(model, [(x, labels)], 3), "0", model[0](x), labels)


def test_an_activation_in_place_does_not_rewrite_the_data():
    model = built(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)))
    x = gaussian(9, 4, dtype=torch.float32)
    before = x.clone()
    layer_metrics(model, [(x, torch.arange(9) % 3)], 3)
    assert_close(x, before, rtol=0, atol=0)


# --- the model is left as it was


class Fragile(nn.Module):
    """Dropout and batch norm, some parts in eval mode; fails when asked to."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.last, self.fails = nn.Linear(6, 3), False
        self.norm.eval()

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        if self.fails:
            raise RuntimeError("stumbled")
        return self.last(x)


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return hooks, [module.training for module in model.modules()], [b.tolist() for b in model.state_dict().values()]


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_flags_and_buffers_are_left_as_they_were(fails):
    model = built(Fragile)
    model.fails = fails
    before, batch = state(model), [(gaussian(6, 4), torch.arange(6) % 3)]
    if fails:
        with pytest.raises(RuntimeError, match="stumbled"):
            layer_metrics(model, batch, 3)
    else:
        # In eval mode nothing is dropped: twice the same numbers.
        first, second = layer_metrics(model, batch, 3), layer_metrics(model, batch, 3)
        assert first.identical(second)
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


class Drawing(Dataset):
    """Samples that come with new noise of every global generator."""

    def __len__(self):
        return 9

    def __getitem__(self, place):
        return torch.rand(4) + np.random.rand() + random.random(), place % 3  # noqa: NPY002


STILL = TensorDataset(gaussian(9, 4).float(), torch.arange(9) % 3)
LOADERS = {
    "in order": lambda: DataLoader(STILL, batch_size=3),
    "shuffled": lambda: DataLoader(STILL, batch_size=3, shuffle=True),
    "shuffled by its own generator": lambda: DataLoader(STILL, batch_size=3, shuffle=True, generator=seeded()),
    "drawn from": lambda: DataLoader(Drawing(), batch_size=3),
    "batches in memory": lambda: Minibatches(*STILL.tensors, 3, seeded()),
}


def generators(loader):
    own = getattr(loader, "generator", None)
    states = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002
    return states if own is None else [*states, own.get_state().tolist()]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("fails", [False, True])
def test_no_generator_is_moved_by_a_pass(kind, fails):
    model, loader = MLP((4, 5, 3), generator=seeded()), LOADERS[kind]()
    with draws_undone():
        before = generators(loader)
        tracker = Tracker(model, LayerMetrics(loader, 3, collapse=True, probe=loader), every=1)
        if fails:
            model.weights[1].fill_(torch.nan)
            with pytest.warns(UserWarning, match="hold NaN"):
                tracker.step()
        else:
            tracker.step()
            assert not tracker.failures
            layer_moments(model, loader, 3)
        assert generators(loader) == before


def test_nor_by_a_model_that_draws():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        layer_metrics(Noisy(), [(gaussian(9, 4), torch.arange(9) % 3)], 3, "self")
        layer_features(Noisy(), gaussian(9, 4), "self")
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", LOADERS)
def test_training_ends_the_same_with_a_tracker_on_its_own_loader(kind):
    def trained(tracked):
        with draws_undone():
            torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
            model, loader = MLP((4, 5, 3), generator=seeded()), LOADERS[kind]()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            tracker = Tracker(model, LayerMetrics(loader, 3), every=2) if tracked else None
            for _ in range(2):
                for x, labels in loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), labels).backward()
                    optimizer.step()
                    if tracker:
                        tracker.step()
            assert not tracker or tracker.trajectory.sizes["step"] == 4
            return [weight.tolist() for weight in model.weights], generators(loader)

    assert trained(tracked=True) == trained(tracked=False)


# --- the probe


def test_the_probe_records_the_metrics_of_the_moment():
    model = MLP((4, 5, 3), generator=seeded())
    loader = [(gaussian(9, 4), torch.arange(9) % 3)]
    tracker = Tracker(model, LayerMetrics(loader, 3, layers="relu|output", balanced=False), every=1)
    expected = [layer_metrics(model, loader, 3, "relu|output", balanced=False)]
    model.weights[0].mul_(-1)
    tracker.step()
    expected.append(layer_metrics(model, loader, 3, "relu|output", balanced=False))
    assert tracker.trajectory["features"].values.tolist() == ["input", "relu1", "output"]
    for step, metrics in enumerate(expected):
        for name in metrics:
            np.testing.assert_array_equal(tracker.trajectory[name].sel(step=step), metrics[name])


# --- refusals

GOOD = gaussian(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("batches", "classes", "message"),
    [
        ([GOOD], 1, "num_classes must be at least 2, got 1"),
        ([], 3, "the loader gave no batch"),
        ([GOOD], 4, r"no sample of class \[3\]: num_classes is 4"),
        ([GOOD], 2, r"labels must lie in 0 … 1 \(num_classes=2\), got 0 … 2"),
        ([(GOOD[0], GOOD[1] - 1)], 3, r"labels must lie in 0 … 2 .* got -1 … 1"),
        ([(GOOD[0], GOOD[1].double())], 3, r"labels must be whole numbers \(samples,\), got torch.float64 \(6,\)"),
        ([(GOOD[0], GOOD[1][:, None])], 3, r"labels must be whole numbers \(samples,\), got torch.int64 \(6, 1\)"),
        ([(GOOD[0], GOOD[1][:5])], 3, r"5 labels came with \(6, 4\) features of 'input'"),
        ([GOOD, (GOOD[0] * math.nan, GOOD[1])], 3, "features of 'input' hold NaN or infinity"),
        ([(GOOD[0] * math.inf, GOOD[1])], 3, "features of 'input' hold NaN or infinity"),
    ],
)
def test_data_that_cannot_be_measured_are_refused(batches, classes, message):
    with pytest.raises(ValueError, match=message):
        layer_metrics(look_through(4), batches, classes)


def test_a_probe_of_no_batch_is_refused():
    with pytest.raises(ValueError, match="the loader gave no batch"):
        Tracker(look_through(4), LayerMetrics([], 3))


def test_features_that_overflow_are_named():
    model = DeepLinearNetwork.from_weights([1e200 * torch.eye(4, dtype=torch.float64)] * 2)
    with pytest.raises(ValueError, match="features of 'W2' hold NaN or infinity"):
        layer_metrics(model, [GOOD], 3)


def test_an_empty_batch_among_others_is_harmless():
    features, labels = clusters()
    batches = [(features[:0], labels[:0]), (features, labels), (features[:0], labels[:0])]
    assert_statistics(layer_metrics(look_through(5), batches, 3), "W1", features, labels)
