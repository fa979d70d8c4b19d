"""Spectra of weights: singular values of the layers that are asked for, and the shapes of their record."""

import numpy as np
import pytest
from torch import nn
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.problems import Factorization
from tests.cases import gaussian, seeded
from tests.known_spectra import values, with_values

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- singular values


def test_values_are_numpys_and_shorter_layers_are_padded():
    model = MLP((6, 5, 4, 2), generator=seeded())
    look = Spectra(top=1).begin(model)
    dims, seen = look(0)["singular_values"]
    assert (dims, look.coords["layer"]) == (("layer", "index"), ["hidden1", "hidden2", "output"])
    assert look.coords["index"].tolist() == list(range(5))
    for row, weight in zip(seen, model.weights, strict=True):
        expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-12)
        assert np.isnan(row[len(expected) :]).all()
    assert seen.dtype == np.float64


def test_layers_are_chosen_by_a_pattern():
    model = MLP((4, 4, 4, 4), generator=seeded())
    assert Spectra(layers="hidden").begin(model).coords["layer"] == ["hidden1", "hidden2"]
    assert Spectra(layers=r"2$|out").begin(model).coords["layer"] == ["hidden2", "output"]


def test_a_pattern_without_a_layer_is_refused_with_the_candidates():
    with pytest.raises(ValueError, match=r"no weight matches 'attn': .* has hidden1, output; pass layers="):
        Spectra(layers="attn").begin(MLP((4, 4, 4), generator=seeded()))
    with pytest.raises(ValueError, match="no weight at all"):
        Spectra().begin(nn.ReLU())


def test_wrapped_models_keep_the_names_of_their_layers():
    wrapped = nn.Module()
    wrapped.add_module("_orig_mod", nn.Module())
    wrapped._orig_mod.add_module("module", MLP((4, 4, 4), generator=seeded()))
    assert Spectra().begin(wrapped).coords["layer"] == ["hidden1", "output"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"top": -1}, ValueError),
        ({"top": 1.5}, TypeError),
        ({"reference": -1}, ValueError),
        ({"reference": 0.5}, TypeError),
    ],
)
def test_what_cannot_be_followed_is_refused(arguments, error):
    with pytest.raises(error, match="must be"):
        Spectra(**arguments)


# --- shapes of the record


def test_a_prefix_lets_two_look_at_once():
    network = DeepLinearNetwork.from_weights([with_values(3.0, 2.0, 1.0)])
    probes = [Spectra(top=1), Spectra(top=1, prefix="late_", reference=2)]
    trajectory = gradient_descent(network, Factorization(gaussian(3, 3)), Descent(lr=0.1), 4, record=probes)
    np.testing.assert_array_equal(trajectory["singular_values"], trajectory["late_singular_values"])
    assert trajectory["right_angles"][2].values.max() > 0
    np.testing.assert_allclose(trajectory["late_right_angles"][2], 0, atol=1e-14)


@pytest.mark.parametrize("reference", [0, "bases"])
def test_networks_side_by_side_are_the_single_ones(reference):
    network = DeepLinearNetwork.from_weights([gaussian(3, 5, 5), gaussian(3, 2, 5, seed=1)])
    if reference == "bases":
        bases = [random_orthogonal(d, 2, generator=seeded(d)) for d in (5, 5, 2)]
        reference = {"W1": (bases[1], bases[0]), "W2": (bases[2], bases[1])}
    alone = [network.run(index) for index in range(3)]
    probe = Spectra(top=1, reference=reference)
    look, looks = probe.begin(network), [probe.begin(single) for single in alone]
    for step in range(2):
        record, singles = look(step), [single(step) for single in looks]
        for name, (dims, array) in record.items():
            assert dims == ("run", *singles[0][name][0])
            for index in range(3):
                np.testing.assert_allclose(array[index], singles[index][name][1], rtol=1e-10, atol=1e-13)
        for index, weights in enumerate(zip(network.weights, *[single.weights for single in alone], strict=True)):
            change = 0.1 * gaussian(*weights[0].shape, seed=index + 7)
            weights[0].add_(change)
            for part, weight in zip(change, weights[1:], strict=True):
                weight.add_(part)


def test_what_is_seen_does_not_change_afterwards():
    network = DeepLinearNetwork.from_weights([with_values(3.0, 2.0, 1.0)])
    look = Spectra(top=1).begin(network)
    first = values(look(0))
    copies = {name: array.copy() for name, array in first.items()}
    network.weights[0].add_(gaussian(3, 3))
    look(1)
    for name, array in copies.items():
        np.testing.assert_array_equal(first[name], array)


def test_looking_leaves_the_model_as_it_was():
    model = MLP((4, 4, 3), generator=seeded())
    before = [weight.clone() for weight in model.weights]
    Spectra(top=1).begin(model)(0)
    for weight, expected in zip(model.weights, before, strict=True):
        assert_close(weight, expected, rtol=0, atol=0)
    assert model.training
