"""Layers as pairs W = BA: exact where W has that rank, the best there is where it has not, and back again."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from torch.nn.utils import prune
from torch.testing import assert_close

from lowdyn import factorize
from lowdyn.linalg import random_orthogonal
from lowdyn.lowrank import merge
from lowdyn.lowrank.pairs import drawn, is_pair, low_rank_pair, merged, projected, truncated, worthwhile_rank
from lowdyn.networks import MLP
from tests.cases import built, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def of_rank(rank, rows, columns, seed=0):
    return gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1)


def linear(weight, bias=True):
    layer = built(lambda: nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=weight.dtype))
    layer.weight = nn.Parameter(weight.clone())
    return layer


def mlp(*sizes, dtype=torch.float64):
    return MLP(sizes or (12, 30, 20, 5), generator=seeded(), dtype=dtype)


def product(pair):
    return (pair[1].weight.flatten(1) @ pair[0].weight.flatten(1)).detach()


# --- one layer


@pytest.mark.parametrize(("rank", "rows", "columns"), [(1, 4, 4), (3, 9, 5), (2, 5, 9), (4, 4, 7)])
def test_a_weight_of_exact_rank_is_factorized_without_loss(rank, rows, columns):
    layer = linear(of_rank(rank, rows, columns))
    pair, lost = low_rank_pair(layer, rank)
    assert lost < 1e-28  # squares of rounding
    assert_close(product(pair), layer.weight.detach(), rtol=0, atol=1e-14 * rows * columns)
    assert_close(pair(gaussian(6, columns)), layer(gaussian(6, columns)), rtol=1e-12, atol=1e-12)
    assert [tuple(p.shape) for p in pair.parameters()] == [(rank, columns), (rows, rank), (rows,)]


def test_what_is_lost_is_what_eckart_and_young_say():
    left, right = random_orthogonal(6, 3, generator=seeded(1)), random_orthogonal(5, 3, generator=seeded(2))
    matrix = left @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ right.mT
    b, a, lost = truncated(matrix, 1)
    assert lost == pytest.approx(5 / 21, rel=1e-13)
    assert_close((matrix - b @ a).square().sum() / matrix.square().sum(), torch.tensor(5 / 21, dtype=torch.float64))
    assert_close(b.mT @ b, a @ a.mT, rtol=1e-13, atol=1e-13)  # balanced
    assert_close((b.mT @ b).item(), 4.0)


def test_the_projection_is_the_layer_on_the_subspace_and_nothing_off_it():
    weight, active = gaussian(6, 9), random_orthogonal(9, 3, generator=seeded())
    b, a, lost = projected(weight, active)
    inside, outside = active @ gaussian(3, 4), gaussian(9, 4) - active @ (active.mT @ gaussian(9, 4))
    assert_close(b @ (a @ inside), weight @ inside, rtol=1e-12, atol=1e-12)
    assert_close(b @ (a @ outside), torch.zeros_like(b @ (a @ outside)), rtol=0, atol=1e-13)
    assert_close(b.mT @ b, a @ a.mT, rtol=1e-12, atol=1e-12)
    assert lost == pytest.approx(1 - float((weight @ active).square().sum() / weight.square().sum()))
    assert projected(0 * weight, active)[2] == 0.0


def test_a_zero_weight_stays_zero():
    pair, lost = low_rank_pair(linear(torch.zeros(3, 4)), 2)
    assert lost == 0.0
    assert not product(pair).any()


@given(
    rank=st.integers(1, 4), inputs=st.integers(4, 6), outputs=st.integers(4, 6), kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2), padding=st.sampled_from([0, 1]), dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular", "reflect"]), bias=st.booleans(),
)  # fmt: skip
def test_a_pair_of_convolutions_is_the_dense_one_of_its_product(
    rank, inputs, outputs, kernel, stride, padding, dilation, mode, bias
):
    layer = built(
        lambda: nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, bias=bias, padding_mode=mode, dtype=torch.float64
        )
    )
    images = gaussian(2, inputs, 7, 8)
    pair, _ = low_rank_pair(layer, rank)
    twin = copy.deepcopy(layer)
    twin.weight.data = product(pair).reshape(layer.weight.shape)
    assert_close(pair(images), twin(images), rtol=1e-11, atol=1e-11)
    back = merged(pair)
    assert_close(back(images), pair(images), rtol=1e-11, atol=1e-11)
    assert repr(back) == repr(layer)


def test_a_convolution_of_exact_rank_is_factorized_without_loss_also_with_words_for_padding():
    layer = built(lambda: nn.Conv2d(3, 8, (3, 5), padding="same", dtype=torch.float64))
    layer.weight.data = of_rank(2, 8, 45).reshape(8, 3, 3, 5)
    pair, lost = low_rank_pair(layer, 2)
    images = gaussian(2, 3, 6, 6)
    assert lost < 1e-28
    assert_close(pair(images), conv2d(images, layer.weight, layer.bias, padding="same"), rtol=1e-11, atol=1e-11)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_a_rank_is_worthwhile_exactly_where_multiply_adds_fall(rows, columns):
    ranks = [rank for rank in range(1, 45) if rank * (rows + columns) < rows * columns]
    assert worthwhile_rank(rows, columns) == max(ranks, default=0)


def test_drawn_factors_have_the_size_of_a_dense_start():
    b, a = drawn(300, 200, 50, generator=seeded())
    assert_close((b @ a).var() * 3 * 200, torch.tensor(1.0, dtype=torch.float64), rtol=0.03, atol=0)  # a sample's
    assert_close(b.norm() / a.norm(), torch.tensor(1.0, dtype=torch.float64), rtol=0.02, atol=0)
    again, _ = drawn(300, 200, 50, generator=seeded())
    assert torch.equal(again, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_kind_of_number_mode_and_what_learns_stay(dtype):
    layer = linear(gaussian(8, 8).to(dtype)).to(dtype).eval()
    layer.weight.requires_grad_(False)
    pair, _ = low_rank_pair(layer, 3)
    assert {p.dtype for p in pair.parameters()} == {dtype}
    assert [p.requires_grad for p in pair.parameters()] == [False, False, True]
    assert not any(module.training for module in pair.modules())
    assert pair[1].bias is layer.bias
    back = merged(pair)
    assert (back.weight.dtype, back.weight.requires_grad, back.training) == (dtype, False, False)
    assert back.bias is layer.bias


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_of_full_rank_is_merged_back_to_the_layer(seed):
    for layer in (linear(gaussian(7, 5, seed=seed)), linear(gaussian(5, 7, seed=seed), bias=False)):
        pair, lost = low_rank_pair(layer, 5)
        assert lost == 0.0
        assert_close(merged(pair).weight, layer.weight, rtol=1e-13, atol=1e-13)
        assert repr(merged(pair)) == repr(layer)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "rank must be at least 1"),
        (2.0, TypeError, "rank must be a whole number"),
        (6, ValueError, "rank 6 is more than a weight of 7 x 5 has, 5"),
    ],
)
def test_what_is_no_rank_of_a_layer_is_refused(rank, error, message):
    with pytest.raises(error, match=message):
        low_rank_pair(linear(gaussian(7, 5)), rank)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(9, 2), nn.Linear(2, 9)),  # a bias between
        lambda: nn.Sequential(nn.Linear(9, 9, bias=False), nn.Linear(9, 9)),  # no bottleneck
        lambda: nn.Sequential(nn.Linear(9, 2, bias=False), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(9, 2, bias=False), nn.Linear(2, 9), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(9, 2, 3, bias=False), nn.Conv2d(2, 9, 3)),
        lambda: nn.Sequential(nn.Conv2d(9, 2, 3, bias=False), nn.Conv2d(2, 9, 1, stride=2)),
        lambda: nn.Sequential(nn.Conv2d(8, 2, 3, bias=False, groups=2), nn.Conv2d(2, 9, 1)),
        lambda: nn.Sequential(nn.Conv2d(9, 2, 3, bias=False), nn.Linear(2, 9)),
        lambda: nn.ModuleList([nn.Linear(9, 2, bias=False), nn.Linear(2, 9)]),
    ],
)
def test_only_what_amounts_to_one_layer_is_a_pair(build):
    assert not is_pair(built(build))


# --- a model


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


# --- layers that stand in several places, or must stay


class Twice(nn.Module):
    """One layer under two names, used three times."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.again = self.middle
        self.inner = nn.ModuleList([self.middle])

    def forward(self, x):
        return self.last(self.inner[0](self.again(torch.tanh(self.middle(self.first(x))))))


def test_a_layer_in_several_places_is_replaced_in_all():
    model = built(Twice).double()
    model.middle.weight.data = of_rank(2, 8, 8)
    expected = model(gaussian(5, 8))
    assert factorize(model, ranks=2).ranks == {"middle": 2}
    assert model.middle is model.again is model.inner[0]
    assert_close(model(gaussian(5, 8)), expected, rtol=1e-10, atol=1e-10)
    assert merge(model) == ["middle"]
    assert model.middle is model.again is model.inner[0]
    assert_close(model(gaussian(5, 8)), expected, rtol=1e-10, atol=1e-10)


def tied():
    model = nn.Sequential(nn.Embedding(20, 20), *(nn.Linear(20, 20) for _ in range(4)))
    model[2].weight = model[0].weight
    return model


def normed():
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(5)))
    nn.utils.parametrizations.weight_norm(model[1])
    prune.random_unstructured(model[2], "weight", 0.5)
    return model


def hooked():
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    model[1].register_forward_hook(lambda *_: None)
    return model


def paired():
    return nn.Sequential(
        nn.Linear(20, 20),
        nn.Sequential(nn.Linear(20, 3, bias=False), nn.Linear(3, 20)),
        nn.Linear(20, 20),
        nn.Linear(20, 9),
    )


def transformer():
    layer = nn.TransformerEncoderLayer(20, 2, 20, batch_first=True)
    return nn.Sequential(nn.Linear(20, 20), layer, nn.Linear(20, 20), nn.Linear(20, 20))


@pytest.mark.parametrize(
    ("build", "reasons"),
    [
        (tied, {"2": "its weight is tied to another module's"}),
        (
            normed,
            {
                "1": "a ParametrizedLinear, not a plain Linear",
                "2": "its weight is computed or spread over devices, not a plain parameter",
            },
        ),
        (hooked, {"1": "it has hooks, which would be lost"}),
        (paired, {"1.0": "half of the pair 1; merge() first", "1.1": "half of the pair 1; merge() first"}),
        (
            transformer,
            {
                "1.self_attn.out_proj": "a NonDynamicallyQuantizableLinear, not a plain Linear",
                "1.linear1": "nn.TransformerEncoderLayer reads its weight",
                "1.linear2": "nn.TransformerEncoderLayer reads its weight",
            },
        ),
    ],
)  # fmt: skip
def test_what_must_stay_stays_and_the_table_says_why(build, reasons):
    with torch.random.fork_rng(devices=[]):
        model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = factorize(model, ranks=2)
    kept = {layer.name: layer.kept for layer in table.layers if layer.kept not in (None, "first layer", "last layer")}
    assert kept == reasons
    assert len(table.ranks) == 1
    for name in reasons:
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if key.startswith(f"{name}."))


def test_hooks_and_optimizers_of_other_layers_go_on():
    model = mlp()
    factorize(model, ranks=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = product(model.hidden2)
    cross_entropy(model(gaussian(4, 12)), torch.arange(4)).backward()
    optimizer.step()
    assert not torch.equal(product(model.hidden2), before)


# --- refusals leave the model as it was


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ranks": 3, "layers": "attn"}, ValueError, r"no linear .* matches 'attn'.*hidden1, hidden2, output"),
        ({"ranks": 0}, ValueError, "ranks must be at least 1, got 0"),
        ({"ranks": True}, TypeError, "ranks must be a rank, a fraction, or ranks by name, got True"),
        ({"ranks": "3"}, TypeError, "ranks must be a rank, a fraction"),
        ({"ranks": 1.0}, ValueError, "as a fraction, must be below 1"),
        ({"ranks": 0.0}, ValueError, "as a fraction, must be above 0"),
        ({"ranks": float("nan")}, ValueError, "as a fraction, must be finite"),
        ({"ranks": {"hidden9": 2}}, ValueError, "ranks names 'hidden9', which is no layer.*hidden1, hidden2, output"),
        ({"ranks": {"hidden2": 2.0}}, TypeError, "rank of hidden2 must be a whole number"),
        ({"ranks": {"hidden2": 20}}, ValueError, r"rank of hidden2 must be below min\(out, in\) = 20, got 20"),
        ({"ranks": {"hidden2": 2}, "layers": "out"}, ValueError, "none is in both"),
        ({"ranks": 12}, ValueError, r"no layer was factorized \(.*hidden2: rank 12 saves nothing, at most 11 would"),
        ({"ranks": 2, "layers": "hidden1"}, ValueError, r"no layer was factorized \(hidden1: first layer\)"),
        ({"ranks": 2, "loss": lambda model: 1.0}, TypeError, "loss must return a scalar tensor"),
        ({"ranks": 2, "loss": lambda model: model(gaussian(2, 12))}, TypeError, "loss must return a scalar tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(arguments, error, message):
    model = mlp()
    before = list(model.named_modules())
    with pytest.raises(error, match=message):
        factorize(model, **arguments)
    assert list(model.named_modules()) == before


def test_models_that_cannot_be_operated_on_are_refused():
    with pytest.raises(ValueError, match=r"the model is itself one Linear; put it into an nn.Sequential"):
        factorize(linear(gaussian(4, 4)), ranks=1)
    with pytest.raises(ValueError, match="no linear or convolutional layer at all"):
        factorize(nn.ReLU(), ranks=1)
    with pytest.raises(ValueError, match="0 is lazy and has no shape yet"):
        factorize(nn.Sequential(nn.LazyLinear(4)), ranks=1)
    with pytest.raises(ValueError, match=r"no pair matches None: this model has no pair at all"):
        merge(mlp())


def test_weights_without_values_are_refused_by_name():
    model = mlp()
    model.hidden2.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"hidden2.weight holds 1 values that are NaN"):
        factorize(model, ranks=3)
    empty = mlp().to("meta")
    with pytest.raises(ValueError, match=r"hidden2.weight is on the meta device .* draw factors with generator="):
        factorize(empty, ranks=3)
    assert factorize(empty, ranks=3, generator=seeded()).ranks == {"hidden2": 3}  # as a form to load weights into
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_a_model_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", nn.Sequential)  # a real one needs a process group
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel; factorize or merge it first"):
        factorize(nn.Sequential(mlp()), ranks=3)
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel; factorize or merge it first"):
        merge(nn.Sequential(mlp()))


def test_a_compiled_model_goes_on_with_its_pairs():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    inputs = gaussian(4, 12)
    compiled(inputs)
    assert factorize(compiled, ranks=4).ranks == {"hidden2": 4}
    assert_close(compiled(inputs), model(inputs))
    assert merge(compiled) == ["hidden2"]
    assert_close(compiled(inputs), model(inputs))


def test_a_warning_when_little_is_factorized():
    model = mlp(200, 100, 12, 12, 5)
    with pytest.warns(UserWarning, match=r"the layers factorized \(hidden3\) held 0\.7% of the model's parameters"):
        factorize(model, ranks=2, layers="hidden3")
