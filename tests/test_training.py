import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lowdyn import Spectra, Tracker, train
from lowdyn.dynamics import DivergenceError
from lowdyn.networks import MLP
from lowdyn.training import Minibatches
from tests.cases import built, gaussian, seeded

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")
pytestmark = pytest.mark.usefixtures("nothing_global_changes")

X = gaussian(50, 3, dtype=torch.float32)
Y = (X[:, 0] > 0).long()


def model_and_optimizer(lr=0.5, **options):
    model = MLP((3, 8, 2), generator=seeded())
    return model, torch.optim.SGD(model.parameters(), lr=lr, **options)


def batches(seed=1, size=16):
    return Minibatches(X, Y, size, seeded(seed))


def train_by_hand(model, optimizer, loader, epochs, loss=nn.functional.cross_entropy, scheduler=None):
    curve = []
    for _ in range(epochs):
        losses, right = [], 0
        for x, y in loader:
            optimizer.zero_grad()
            outputs = model(x)
            value = loss(outputs, y)
            value.backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            losses.append(value.item() * len(y))
            right += int((outputs.argmax(dim=1) == y).sum()) if not y.is_floating_point() else 0
        curve.append((sum(losses) / len(Y), right / len(Y)))
    return np.array(curve).T


# --- the batches


@pytest.mark.parametrize("size", [1, 7, 16, 50, 99])
def test_every_sample_comes_once_with_its_label(size):
    loader = Minibatches(torch.arange(50.0), torch.arange(50), size, seeded())
    parts = list(loader)
    assert len(parts) == len(loader)
    assert [len(y) for _, y in parts[:-1]] == [size] * (len(parts) - 1)
    assert all(torch.equal(x.long(), y) for x, y in parts)
    assert sorted(torch.cat([y for _, y in parts]).tolist()) == list(range(50))


def test_the_order_is_new_every_time_and_the_generators():
    loader, again = (Minibatches(X, torch.arange(50), 50, seeded(1)) for _ in range(2))
    first, second = ([next(iter(source))[1].tolist() for _ in range(2)] for source in (loader, again))
    assert first == second
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, Y[:-1], 4, seeded()), ValueError, "50 inputs came with 49 labels"),
        ((X, Y, 0, seeded()), ValueError, "batch_size must be at least 1"),
        ((X, Y, 4.0, seeded()), TypeError, "batch_size must be a whole number"),
        ((X, Y, 4, None), TypeError, "generator must be a torch.Generator"),
    ],
)
def test_what_are_no_batches_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Minibatches(*arguments)


# --- the loop


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 1e-3}])
@pytest.mark.parametrize("scheduled", [False, True])
def test_training_is_the_loop_by_hand(options, scheduled):
    results = []
    for loop in (train, train_by_hand):
        model, optimizer = model_and_optimizer(**options)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12) if scheduled else None
        if loop is train:
            curve = train(model, batches(), optimizer=optimizer, epochs=3, scheduler=scheduler)
            curve = np.array([curve["loss"], curve["accuracy"]])
        else:
            curve = train_by_hand(model, optimizer, batches(), 3, scheduler=scheduler)
        results.append((model, curve, optimizer.param_groups[0]["lr"]))
    (model, curve, rate), (expected, by_hand, expected_rate) = results
    assert rate == expected_rate
    np.testing.assert_allclose(curve, by_hand, rtol=1e-12)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(parameter, other, rtol=0, atol=0)


def test_it_learns_and_tells_the_curve():
    model, optimizer = model_and_optimizer()
    done = []
    curve = train(model, batches(), optimizer=optimizer, epochs=20, on_epoch=done.append)
    assert curve["step"].values.tolist() == list(range(4, 81, 4))
    assert curve["loss"][-1] < 0.3 * curve["loss"][0]
    assert curve["accuracy"][-1] >= 0.96
    assert done == list(range(1, 21))
    assert curve.attrs["epochs"] == 20


def test_values_are_learned_too():
    targets = X @ gaussian(3, 2, seed=1, dtype=torch.float32)
    model, optimizer = model_and_optimizer(lr=0.1)
    curve = train(
        model, Minibatches(X, targets, 10, seeded()), optimizer=optimizer, epochs=20, loss=nn.functional.mse_loss
    )
    assert curve["loss"][-1] < 0.1 * curve["loss"][0]
    assert np.isnan(curve["accuracy"]).all()


def test_a_data_loader_with_its_own_generator():
    model, optimizer = model_and_optimizer()
    expected, other = model_and_optimizer()
    loaders = [DataLoader(TensorDataset(X, Y), 16, shuffle=True, generator=seeded(2)) for _ in range(2)]
    train(model, loaders[0], optimizer=optimizer, epochs=2)
    train_by_hand(expected, other, loaders[1], 2)
    for parameter, by_hand in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(parameter, by_hand, rtol=0, atol=0)


def test_a_data_loader_of_a_part_counts_all_of_it():
    def loader():
        return DataLoader(TensorDataset(X, Y), 16, sampler=range(0, 40, 2), generator=seeded())

    model, optimizer = model_and_optimizer()
    expected, other = model_and_optimizer()
    curve = train(model, loader(), optimizer=optimizer, epochs=2)
    train_by_hand(expected, other, loader(), 2)
    assert float(curve["accuracy"][1]) * 20 == pytest.approx(round(float(curve["accuracy"][1]) * 20), abs=1e-12)
    for parameter, by_hand in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(parameter, by_hand, rtol=0, atol=0)


def test_the_model_trains_in_training_mode():
    model = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    model.eval()
    train(model, batches(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1), epochs=1)
    assert int(model[1].num_batches_tracked) == 4


def test_the_tracker_steps_with_every_update():
    model, optimizer = model_and_optimizer()
    tracker = Tracker(model, Spectra(top=1), every=3)
    train(model, batches(), optimizer=optimizer, epochs=2, tracker=tracker)
    assert tracker.steps == 8
    assert tracker.trajectory["step"].values.tolist() == [0, 3, 6]
    assert tracker.trajectory["left_angles"][-1, :, 0].min() > 0


def test_divergence_is_said_with_step_epoch_and_rate():
    model, optimizer = model_and_optimizer(lr=1e30)
    with pytest.raises(DivergenceError, match=r"not finite at step 2 \(epoch 1\); lower the learning rate, 1e\+30"):
        train(model, batches(), optimizer=optimizer, epochs=3)


def test_divergence_keeps_the_curve_until_then():
    model, optimizer = model_and_optimizer()

    def blow_up(epoch):
        if epoch == 2:
            model.weights[0].mul_(torch.inf)

    with pytest.raises(DivergenceError, match="epoch 3") as error:
        train(model, batches(), optimizer=optimizer, epochs=5, on_epoch=blow_up)
    assert error.value.trajectory["step"].values.tolist() == [4, 8]
    assert np.isfinite(error.value.trajectory["loss"]).all()


def test_divergence_is_said_before_a_tracker_stumbles_over_it():
    model, optimizer = model_and_optimizer(lr=1e30)
    tracker = Tracker(model, Spectra(top=1), every=1)
    with pytest.raises(DivergenceError):
        train(model, batches(), optimizer=optimizer, epochs=3, tracker=tracker)


@pytest.mark.parametrize(("loader", "epochs"), [([], 1), ([], 2), (iter([(X, Y)]), 2)])
def test_a_loader_that_gives_nothing_is_refused(loader, epochs):
    model, optimizer = model_and_optimizer()
    with pytest.raises(ValueError, match="no batch"):
        train(model, loader, optimizer=optimizer, epochs=epochs)


@pytest.mark.parametrize(("epochs", "error"), [(0, ValueError), (1.5, TypeError)])
def test_epochs_are_counted(epochs, error):
    model, optimizer = model_and_optimizer()
    with pytest.raises(error, match="epochs must be"):
        train(model, batches(), optimizer=optimizer, epochs=epochs)


# --- how Accelerate is configured


@pytest.mark.parametrize(("size", "accumulated", "samples"), [(8, 2, 50), (4, 4, 49), (5, 3, 50), (50, 3, 50)])
def test_accumulated_batches_are_one_large_batch(accelerators, size, accumulated, samples):
    results = []
    for batch_size, steps in ((size, accumulated), (size * accumulated, 1)):
        model, optimizer = model_and_optimizer(lr=0.3, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        loader = Minibatches(X[:samples], Y[:samples], batch_size, seeded(1))
        accelerator = accelerators(gradient_accumulation_steps=steps)
        curve = train(model, loader, optimizer=optimizer, epochs=3, scheduler=scheduler, accelerator=accelerator)
        results.append((model, curve))
    (model, curve), (expected, expected_curve) = results
    assert curve["step"].equals(expected_curve["step"])
    np.testing.assert_allclose(curve["loss"], expected_curve["loss"], rtol=1e-5)  # float32
    np.testing.assert_allclose(curve["accuracy"], expected_curve["accuracy"], rtol=1e-12)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(parameter, other, rtol=0, atol=1e-6)


def test_mixed_precision_is_autocast(accelerators):
    model, optimizer = model_and_optimizer()
    train(model, batches(), optimizer=optimizer, epochs=2, accelerator=accelerators(mixed_precision="bf16"))
    expected, other = model_and_optimizer()

    def in_bf16(x):
        with torch.autocast("cpu", torch.bfloat16):
            return expected(x).float()

    train_by_hand(in_bf16, other, batches(), 2)
    plain, third = model_and_optimizer()
    train_by_hand(plain, third, batches(), 2)
    for parameter, by_hand, full in zip(model.parameters(), expected.parameters(), plain.parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert_close(parameter, by_hand, rtol=0, atol=0)
        assert not torch.equal(parameter, full)
    assert model(X).dtype == torch.float32
    assert not {"forward", "_original_forward"} & vars(model).keys()  # as it was before


def test_a_model_is_trained_twice_as_it_is_once(accelerators):
    accelerator = accelerators(mixed_precision="bf16")
    results = []
    for parts in ((4,), (1, 3)):
        model, optimizer = model_and_optimizer(momentum=0.9)
        loader = batches()
        for epochs in parts:
            train(model, loader, optimizer=optimizer, epochs=epochs, accelerator=accelerator)
        results.append(model)
    for parameter, other in zip(*(model.parameters() for model in results), strict=True):
        assert_close(parameter, other, rtol=0, atol=0)


def test_several_labels_a_sample_count_by_their_share():
    model = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4))))
    labels = torch.stack([Y, Y + 2], dim=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    curve = train(
        model,
        Minibatches(X, labels, 16, seeded()),
        optimizer=optimizer,
        epochs=1,
        loss=lambda outputs, wanted: nn.functional.cross_entropy(outputs.mT, wanted),
    )
    expected = (model(X).argmax(dim=-1) == labels).double().mean()
    assert float(curve["accuracy"][0]) == pytest.approx(float(expected), rel=1e-12)


def test_what_is_not_finite_never_reaches_the_weights():
    model, optimizer = model_and_optimizer()
    with pytest.raises(DivergenceError, match="step 1"):
        train(model, [(X * torch.inf, Y)], optimizer=optimizer, epochs=1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
