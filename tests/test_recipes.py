import copy
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lowdyn import advise_ranks, factorize, train
from lowdyn.networks import MLP
from lowdyn.recipes import FirstBatches, train_low_rank
from lowdyn.training import Minibatches
from tests.cases import gaussian, seeded

pytest.importorskip("accelerate", reason="the minibatch loop runs on Accelerate")
pytestmark = pytest.mark.usefixtures("nothing_global_changes")
X = gaussian(96, 20)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
SGD, ADAM = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=1e-2)


def model():
    return MLP((20, 40, 40, 3), generator=seeded(), dtype=torch.float64)


def batches(seed=1):
    return Minibatches(X, Y, 32, seeded(seed))


def recipe(network, **options):
    options = {"warm_up_optimizer": SGD, "optimizer": ADAM, "warm_up_steps": 7, "epochs": 4} | options
    return train_low_rank(network, batches(), **options)


def test_it_is_its_parts_one_after_the_other():
    network, twin = model(), model()
    run = recipe(network, scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=5))
    loader, start = batches(), copy.deepcopy(twin)
    first = train(twin, FirstBatches(loader, 7), optimizer=SGD(twin.parameters()), epochs=1)
    advice = advise_ranks(twin, start)
    assert (advice.ranks, run.advice) == (run.table.ranks, advice)
    factorize(twin, advice)
    optimizer = ADAM(twin.parameters())
    second = train(twin, loader, optimizer=optimizer, epochs=4, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 5))
    assert run.model is network
    for name, value in network.state_dict().items():
        assert_close(value, twin.state_dict()[name], rtol=1e-9, atol=1e-11)
    assert run.curve["step"].values.tolist() == [7, 10, 13, 16, 19]
    assert run.curve["loss"].values.tolist() == pytest.approx([*first["loss"].values, *second["loss"].values])
    assert (run.curve.attrs["factorized_at"], run.curve.attrs["epochs"]) == (7, 4)


def test_the_warm_up_is_tracked():
    warm_up = recipe(model(), layers="hidden2").warm_up
    assert warm_up["step"].values.tolist() == [0, 7]
    assert warm_up["layer"].values.tolist() == ["hidden2"]
    assert "singular_values" in warm_up


def test_it_learns():
    run = recipe(model(), epochs=20)
    assert run.table.ranks.keys() == {"hidden2"}
    assert run.table.parameters[1] < run.table.parameters[0]
    assert float(run.curve["accuracy"][-1]) == 1.0


def test_the_weights_go_on_from_where_the_warm_up_left_them():
    network = model()
    run = recipe(network, optimizer=partial(torch.optim.SGD, lr=0.0), epochs=1)
    twin = model()
    train(twin, FirstBatches(batches(), 7), optimizer=SGD(twin.parameters()), epochs=1)
    b, a = network.hidden2[1].weight, network.hidden2[0].weight
    active = run.advice.active["hidden2"]
    assert_close(b @ a, twin.hidden2.weight @ active @ active.mT, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("loader", "count", "expected"),
    [([1, 2, 3], 2, [1, 2]), ([1, 2], 5, [1, 2, 1, 2, 1]), ([], 3, []), (iter([1, 2]), 5, [1, 2])],
)
def test_the_first_batches_go_around(loader, count, expected):
    assert list(FirstBatches(loader, count)) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"warm_up_steps": 0}, ValueError, "must be at least 1"),
        ({"layers": "attn"}, ValueError, "matches 'attn'"),
        ({"share": 1.0}, ValueError, r"(?s)no layer is worth a pair at the ranks advised:.*hidden2.*at most rank 19"),
    ],
)
def test_what_cannot_be_done_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        recipe(model(), **options)
