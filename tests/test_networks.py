import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork
from lowdyn.networks import MLP, hybrid, normal, orthogonal, uniform
from tests.cases import CHAINS, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- DeepLinearNetwork


@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6), runs=st.sampled_from([None, 1, 3]))
def test_sizes_give_weights_that_chain(sizes, runs):
    network = DeepLinearNetwork(sizes, 0.5, generator=seeded(), runs=runs)
    batch = () if runs is None else (runs,)
    assert [tuple(w.shape) for w in network.weights] == [(*batch, b, a) for a, b in pairwise(sizes)]
    assert (network.sizes, network.depth, network.runs) == (tuple(sizes), len(sizes) - 1, runs)
    assert network.rectified == (False,) * network.depth
    assert [name for name, _ in network.named_children()] == [f"W{layer}" for layer in range(1, len(sizes))]


def test_orthogonal_weights_have_one_singular_value():
    network = DeepLinearNetwork((5, 7, 3), 0.25, generator=seeded())
    for weight in network.weights:
        expected = torch.full((min(weight.shape),), 0.25, dtype=torch.float64)
        assert_close(torch.linalg.svdvals(weight), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("start", [normal, uniform])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_other_starts_have_the_norm_of_the_orthogonal_one_on_average(start, shape):
    weights = start(*shape, generator=seeded(), runs=(20_000,))
    norms = weights.square().sum(dim=(-2, -1))
    # ± 4 standard errors; both means are exactly min(shape).
    assert float(norms.mean()) == pytest.approx(min(shape), abs=4 * float(norms.std()) / 20_000**0.5)
    assert float(weights.mean()) == pytest.approx(0, abs=4 * float(weights.std()) / weights.numel() ** 0.5)
    if start is uniform:
        assert float(weights.abs().max()) <= (3 / max(shape)) ** 0.5


def test_a_start_may_be_any_callable():
    network = DeepLinearNetwork(
        (3, 2), 2.0, start=lambda rows, columns, **_: torch.ones(rows, columns), generator=seeded()
    )
    assert_close(network.weights[0], torch.full((2, 3), 2.0))


def test_a_start_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        DeepLinearNetwork((3, 4, 5), start=lambda rows, columns, **_: torch.ones(columns, rows), generator=seeded())


def test_the_same_seed_gives_the_same_network():
    first, again, other = (DeepLinearNetwork((4, 4, 4), generator=seeded(seed)) for seed in (1, 1, 2))
    for a, b, c in zip(first.weights, again.weights, other.weights, strict=True):
        assert_close(a, b, rtol=0, atol=0)
        assert not torch.allclose(a, c)
    assert not torch.allclose(first.weights[0], first.weights[1])


def test_weights_are_views_of_the_parameters():
    network = DeepLinearNetwork((3, 3, 3), generator=seeded())
    network.weights[1].zero_()
    assert not network.W2.weight.any()
    assert not network.weights[0].requires_grad
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("runs", [None, 3])
def test_forward_and_end_to_end_are_the_product(chain, runs):
    weights = chain.weights(runs=runs)
    network = DeepLinearNetwork.from_weights(weights)
    product = torch.eye(chain.sizes[0], dtype=torch.float64)
    for weight in weights:
        product = weight @ product
    assert_close(network.end_to_end(), product, rtol=1e-13, atol=1e-15)
    features = gaussian(7, chain.sizes[0], seed=9)
    assert_close(network(features), features @ product.mT, rtol=1e-13, atol=1e-14)


def test_the_product_does_not_follow_the_weights_later():
    network = DeepLinearNetwork((3, 3), generator=seeded())
    before = network.end_to_end()
    network.weights[0].zero_()
    assert float(before.norm()) > 1


def test_one_of_the_networks_side_by_side():
    network = DeepLinearNetwork((4, 3, 2), generator=seeded(), runs=3)
    one = network.run(1)
    for weight, part in zip(network.weights, one.weights, strict=True):
        assert_close(part, weight[1], rtol=0, atol=0)
    one.weights[0].zero_()
    assert float(network.weights[0][1].norm()) > 1
    with pytest.raises(ValueError, match="no dimension of runs"):
        one.run(0)


@pytest.mark.parametrize("build", [DeepLinearNetwork.from_weights, MLP.from_weights])
@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_from_weights_copies(build, kind):
    arrays = [np.ones((3, 2)), np.ones((1, 3))]
    network = build(kind(array) for array in arrays)
    network.weights[0].zero_()
    assert arrays[0].min() == 1.0


def test_from_weights_keeps_precision():
    assert DeepLinearNetwork.from_weights([np.ones((2, 2), dtype=np.float32)]).weights[0].dtype == torch.float32
    assert DeepLinearNetwork.from_weights([[[1, 2]]]).weights[0].dtype == torch.float64


def test_networks_copy_save_and_load_like_any_module():
    network = DeepLinearNetwork((4, 4, 2), generator=seeded(1))
    other = DeepLinearNetwork((4, 4, 2), generator=seeded(2))
    other.load_state_dict(network.state_dict())
    assert sorted(network.state_dict()) == ["W1.weight", "W2.weight"]
    for same in (other, copy.deepcopy(network)):
        assert_close(same.end_to_end(), network.end_to_end(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ValueError, "at least one weight, got none"),
        ([np.eye(2), np.eye(3)], ValueError, r"weight 2 of shape \(3, 3\) does not chain .* columns must be 2"),
        ([np.eye(2), np.eye(2, dtype=np.float32)], TypeError, "share one dtype"),
        ([np.ones((2, 3, 3)), np.ones((4, 3, 3))], ValueError, r"\(runs, out, in\)"),
        ([np.ones((2, 3, 3)), np.ones((3, 3))], ValueError, r"\(runs, out, in\)"),
        ([np.ones((1, 2, 3, 3))], ValueError, r"\(runs, out, in\)"),
        ([np.array([[np.nan]])], ValueError, "weight 1 holds 1 values that are NaN"),
        ([np.ones(3)], ValueError, "weight 1 must be a matrix"),
        ([["a"]], TypeError, "weight 1 must be a matrix of numbers"),
    ],
)
@pytest.mark.parametrize("build", [DeepLinearNetwork.from_weights, MLP.from_weights])
def test_weights_that_make_no_network_are_refused(build, weights, error, message):
    with pytest.raises(error, match=message):
        build(weights)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": (3,)}, ValueError, r"at least input and output \(depth 1\)"),
        ({"sizes": ()}, ValueError, r"at least input and output \(depth 1\)"),
        ({"sizes": (3, 0)}, ValueError, "every size must be at least 1"),
        ({"sizes": (3, 2.0)}, TypeError, "every size must be a whole number"),
        ({"sizes": (3, 3), "init_scale": 0}, ValueError, "init_scale must be at least"),
        ({"sizes": (3, 3), "init_scale": -1.0}, ValueError, "init_scale must be at least"),
        ({"sizes": (3, 3), "init_scale": "big"}, TypeError, "init_scale must be a number"),
        ({"sizes": (3, 3), "generator": None}, TypeError, "must be a torch.Generator"),
        ({"sizes": (3, 3), "generator": 0}, TypeError, "must be a torch.Generator"),
    ],
)
@pytest.mark.parametrize("network", [DeepLinearNetwork, MLP])
def test_arguments_that_make_no_network_are_refused(network, arguments, error, message):
    with pytest.raises(error, match=message):
        network(**{"generator": seeded(), **arguments})


@pytest.mark.parametrize("runs", [0, -1])
def test_runs_are_counted_from_one(runs):
    with pytest.raises(ValueError, match="runs must be at least 1"):
        DeepLinearNetwork((3, 3), generator=seeded(), runs=runs)


# --- MLP and hybrid


def forward_by_hand(weights, features, rectified):
    for weight, relu in zip(weights, rectified, strict=True):
        features = features @ weight.T
        features = features.clamp(min=0) if relu else features
    return features


@pytest.mark.parametrize("relu_layers", [None, 0, 1, 2, 3])
def test_an_mlp_rectifies_its_first_layers(relu_layers):
    weights = [gaussian(5, 4), gaussian(6, 5, seed=1), gaussian(5, 6, seed=2), gaussian(2, 5, seed=3)]
    network = MLP.from_weights(weights, relu_layers=relu_layers)
    count = 3 if relu_layers is None else relu_layers
    assert network.rectified == tuple(layer < count for layer in range(4))
    assert network.features == [f"relu{layer}" if layer <= count else f"hidden{layer}" for layer in (1, 2, 3)]
    assert network.depth == 4
    x = gaussian(9, 4, seed=5)
    assert_close(network(x), forward_by_hand(weights, x, network.rectified), rtol=1e-13, atol=1e-14)


def test_an_mlp_flattens_its_inputs_and_scales_its_output():
    network = MLP((6, 4, 3), output_scale=100.0, generator=seeded(), dtype=torch.float64)
    x = gaussian(5, 2, 3)
    expected = 100 * forward_by_hand(network.weights, x.reshape(5, 6), network.rectified)
    assert_close(network(x), expected, rtol=1e-13, atol=1e-12)


def test_biases_start_at_zero():
    network = MLP((6, 4, 3), generator=seeded())
    assert not any(layer.bias.any() for layer in network.factors)
    assert all(layer.bias is None for layer in MLP((6, 4, 3), bias=False, generator=seeded()).factors)


def test_the_default_start_is_torchs():
    network = MLP((400, 300, 2), generator=seeded())
    hidden = network.weights[0]
    # nn.Linear draws uniformly from ±1/√columns, of variance 1/(3·columns); ± 4 standard errors.
    assert float(hidden.abs().max()) <= 1 / 20
    assert float(hidden.square().mean()) == pytest.approx(1 / 1200, rel=4 * (0.8 / hidden.numel()) ** 0.5)
    assert hidden.dtype == torch.float32


def test_an_mlp_takes_the_starts_of_a_linear_network():
    scaled = MLP((5, 5, 5), 0.3, start=orthogonal, generator=seeded(4), dtype=torch.float64)
    linear = DeepLinearNetwork((5, 5, 5), 0.3, generator=seeded(4))
    for weight, expected in zip(scaled.weights, linear.weights, strict=True):
        assert_close(weight, expected, rtol=0, atol=0)


def test_too_many_relus_are_refused():
    with pytest.raises(ValueError, match="relu_layers is 2, but a depth of 2 has 1 hidden layers"):
        MLP((3, 3, 3), relu_layers=2, generator=seeded())


def test_an_mlp_is_one_network():
    with pytest.raises(ValueError, match=r"an MLP takes weights \(out, in\)"):
        MLP.from_weights([np.ones((2, 3, 3))])


def test_the_lectures_hybrid():
    network = hybrid(8, relu_layers=4, linear_layers=6, num_inputs=12, num_outputs=3, generator=seeded())
    assert network.rectified == (True,) * 4 + (False,) * 6
    assert [tuple(w.shape) for w in network.weights] == [(8, 12), *[(8, 8)] * 8, (3, 8)]
    with pytest.raises(ValueError, match="linear_layers must be at least 1"):
        hybrid(8, relu_layers=4, linear_layers=0, num_inputs=12, num_outputs=3, generator=seeded())
