"""Models whose layers become pairs: which layers, of what rank, at what cost, and the model merged back."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lowdyn import factorize
from lowdyn.lowrank import merge
from lowdyn.lowrank.pairs import truncated
from lowdyn.networks import MLP
from tests.cases import built, gaussian, seeded
from tests.low_rank_layers import mlp, of_rank, product

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def test_layers_become_plain_pairs_and_everything_else_stays():
    model, before = mlp(), mlp()
    table = factorize(model, ranks=4)
    assert type(model.hidden2) is nn.Sequential
    assert [type(part) for part in model.hidden2] == [nn.Linear, nn.Linear]
    names = ["hidden1.weight", "hidden1.bias", "hidden2.0.weight", "hidden2.1.weight", "hidden2.1.bias"]
    assert list(model.state_dict()) == [*names, "output.weight", "output.bias"]
    assert torch.equal(model.hidden1.weight, before.hidden1.weight)
    b, a, lost = truncated(before.hidden2.weight, 4)
    assert_close(product(model.hidden2), b @ a)
    hidden1, hidden2, output = table.layers
    assert (hidden1.kept, hidden1.rank, hidden1.weights) == ("first layer", None, (360, 360))
    assert (hidden2.kept, hidden2.rank, hidden2.shape, hidden2.weights) == (None, 4, (20, 30), (600, 200))
    assert hidden2.energy_lost == lost
    assert (output.kept, output.energy_lost) == ("last layer", None)
    assert table.parameters == (sum(map(torch.numel, before.parameters())), sum(map(torch.numel, model.parameters())))
    assert table.parameters[0] - table.parameters[1] == 400
    assert (table.ranks, table.cost) == ({"hidden2": 4}, None)


def test_a_model_of_low_rank_keeps_its_outputs_and_comes_back():
    model = mlp()
    model.hidden2.weight.data = of_rank(4, 20, 30)
    expected, weight, keys = model(gaussian(9, 12)), model.hidden2.weight.detach().clone(), list(model.state_dict())
    factorize(model, ranks=4)
    assert_close(model(gaussian(9, 12)), expected, rtol=1e-12, atol=1e-12)
    assert merge(model) == ["hidden2"]
    assert list(model.state_dict()) == keys
    assert_close(model.hidden2.weight.detach(), weight, rtol=1e-12, atol=1e-12)
    assert_close(model(gaussian(9, 12)), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_factors_are_those_of_the_product():
    model, dense = mlp(), mlp()
    factorize(model, ranks=4)
    factorize(dense, ranks=4)
    merge(dense)
    inputs, labels = gaussian(9, 12), torch.arange(9) % 5
    for one in (model, dense):
        cross_entropy(one(inputs), labels).backward()
    a, b = (part.weight for part in model.hidden2)
    gradient = dense.hidden2.weight.grad
    assert_close(b.grad, gradient @ a.detach().mT, rtol=1e-11, atol=1e-13)
    assert_close(a.grad, b.detach().mT @ gradient, rtol=1e-11, atol=1e-13)
    assert_close(model.hidden1.weight.grad, dense.hidden1.weight.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.999])
def test_a_fraction_is_the_share_of_multiply_adds_that_a_layer_keeps(fraction):
    model = mlp(40, 60, 50, 40, 10)
    for layer in factorize(model, ranks=fraction).layers[1:-1]:
        rows, columns = layer.shape
        assert layer.rank == 1 or layer.weights[1] <= fraction * layer.weights[0]
        assert layer.weights[1] + rows + columns > fraction * layer.weights[0]


def test_ranks_by_name_say_themselves_which_layers():
    model = mlp()
    table = factorize(model, {"hidden1": 3, "output": 2})
    assert table.ranks == {"hidden1": 3, "output": 2}
    twin = mlp()
    assert factorize(twin, table).ranks == table.ranks
    assert factorize(mlp(), table, layers="out").ranks == {"output": 2}


def test_the_first_and_the_last_are_factorized_on_demand():
    assert factorize(mlp(), ranks=2, keep_first_last=False).ranks == {"hidden1": 2, "hidden2": 2, "output": 2}


def test_numbers_of_numpy_are_numbers():
    assert factorize(mlp(), np.int64(2)).ranks == factorize(mlp(), np.float32(0.2)).ranks == {"hidden2": 2}


def test_the_pattern_chooses():
    assert factorize(mlp(8, 30, 30, 30, 30, 5), ranks=3, layers="hidden[24]").ranks == {"hidden2": 3, "hidden4": 3}


def test_only_where_multiply_adds_fall():
    model = mlp(8, 40, 12, 40, 5)
    table = factorize(model, ranks=9, keep_first_last=False)  # 40 x 12: fewer than 480/52
    assert table.ranks == {"hidden2": 9, "hidden3": 9}
    assert [one.kept for one in table.layers[:1]] == ["rank 9 saves nothing, at most 6 would"]
    assert sum(p.numel() for p in model.parameters()) == table.parameters[1] < table.parameters[0]


def test_factors_are_drawn_from_the_generator_alone():
    first, again, other = mlp(), mlp(), mlp()
    tables = [factorize(one, 3, generator=seeded(seed)) for one, seed in ((first, 1), (again, 1), (other, 2))]
    assert torch.equal(product(first.hidden2), product(again.hidden2))
    assert not torch.equal(product(first.hidden2), product(other.hidden2))
    assert tables[0].layers[1].energy_lost is None
    assert first.hidden2[1].bias is not None
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator"):
        factorize(mlp(), 3, generator=0)


def test_the_state_dict_survives_safetensors(tmp_path):
    from safetensors.torch import load_file, load_model, save_model

    model = mlp(dtype=torch.float32)
    table = factorize(model, ranks=4)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(model.state_dict())
    twin = MLP((12, 30, 20, 5), generator=seeded(9))
    factorize(twin, table, generator=seeded(3))
    load_model(twin, str(tmp_path / "model.safetensors"))
    inputs = gaussian(3, 12, dtype=torch.float32)
    assert torch.equal(twin(inputs), model(inputs))
    merge(twin)
    save_model(twin, str(tmp_path / "dense.safetensors"))
    dense = MLP((12, 30, 20, 5), generator=seeded(9))
    load_model(dense, str(tmp_path / "dense.safetensors"))
    assert_close(dense(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_copies_and_pickles_are_of_plain_modules():
    model = mlp()
    factorize(model, ranks=4)
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(model.hidden2), buffer)
    assert b"lowdyn" not in buffer.getvalue()


def test_a_convolutional_network():
    model = built(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, groups=2), nn.Flatten(), nn.Linear(64, 10),
        ).double()
    )  # fmt: skip
    images = gaussian(2, 3, 9, 9)
    table = factorize(model, ranks=3)
    assert [layer.kept for layer in table.layers] == ["first layer", None, "a convolution in 2 groups", "last layer"]
    assert table.layers[1].weights == (8 * 9 * 16, 3 * (72 + 16))
    expected = model(images)
    assert merge(model) == ["2"]
    assert_close(model(images), expected, rtol=1e-11, atol=1e-11)
