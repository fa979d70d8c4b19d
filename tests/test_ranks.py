"""Rank advice: exact where a move of known rank was made, and what factorize and PEFT make of it."""

import copy
import io

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import lowdyn
from lowdyn import Spectra, Tracker, advise_ranks, factorize
from lowdyn.linalg import random_orthogonal, rank_of_energy
from lowdyn.networks import MLP
from tests.cases import built, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
SIZES = (12, 30, 20, 40, 5)


def mlp():
    return MLP(SIZES, generator=seeded(), dtype=torch.float64)


def move(layer, *values, seed=0):
    """Add to a layer's weight a matrix of the singular values given."""
    rows, columns = layer.weight.shape
    left, right = (random_orthogonal(n, len(values), generator=seeded(seed + n)) for n in (rows, columns))
    with torch.no_grad():
        layer.weight += left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT


def moved():
    model = mlp()
    move(model.hidden1, 1.0)
    move(model.hidden2, 4.0, 2.0, 1.0)  # energies 16, 4, 1 of 21
    move(model.hidden3, 3.0, 3.0)
    return model


def advised(advice):
    return {layer.name: layer.rank for layer in advice.layers}


@pytest.mark.parametrize(("share", "rank", "lost"), [(0.5, 1, 5 / 21), (0.9, 2, 1 / 21), (0.96, 3, 0.0), (1.0, 3, 0.0)])
def test_the_rank_is_the_smallest_that_holds_the_share_of_the_move(share, rank, lost):
    advice = advise_ranks(moved(), mlp(), layers="hidden2", share=share if share < 1 else 1 - 1e-12)
    (layer,) = advice.layers
    assert (layer.name, layer.shape, layer.rank, layer.weights) == ("hidden2", (20, 30), rank, (600, 50 * rank))
    assert layer.energy_lost == pytest.approx(lost, abs=1e-14)


def test_the_loss_of_the_weight_itself_is_another_number():
    model = moved()
    (layer,) = advise_ranks(model, mlp(), layers="hidden2").layers
    table = factorize(model, {"hidden2": layer.rank})
    assert layer.weight_energy_lost == pytest.approx(table.layers[0].energy_lost, rel=1e-12)
    assert layer.weight_energy_lost > 0.2 > layer.energy_lost


def compiled_state(model):
    return {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("as_reference", [lambda model: model, lambda model: model.state_dict(), compiled_state])
def test_the_start_is_a_model_or_its_state(as_reference):
    assert advised(advise_ranks(moved(), as_reference(mlp()))) == {
        "hidden1": 1,
        "hidden2": 2,
        "hidden3": 2,
        "output": 0,
    }


def test_first_and_last_unmoved_and_costly_layers_are_not_to_be_pairs():
    model = moved()
    move(model.hidden3, *range(30, 10, -1))
    advice = advise_ranks(model, mlp())
    assert {layer.name: layer.kept for layer in advice.layers} == {
        "hidden1": "first layer",
        "hidden2": None,
        "hidden3": "at most rank 13 saves",
        "output": "it did not move",
    }
    assert advice.ranks == {"hidden2": 2}
    assert advise_ranks(model, mlp(), keep_first_last=False).ranks == {"hidden1": 1, "hidden2": 2}


def test_the_advice_goes_into_factorize():
    model = moved()
    advice = advise_ranks(model, mlp(), keep_first_last=False)
    assert factorize(model, advice).ranks == advice.ranks == {"hidden1": 1, "hidden2": 2, "hidden3": 2}


def test_factorizing_by_advice_keeps_the_weight_on_the_inputs_that_learning_used():
    model = moved()
    weight, change = (
        one.detach().clone() for one in (model.hidden2.weight, model.hidden2.weight - mlp().hidden2.weight)
    )
    advice = advise_ranks(model, mlp(), layers="hidden2")
    (active,) = advice.active.values()
    assert_close(active @ active.mT, torch.linalg.svd(change).Vh[:2].mT @ torch.linalg.svd(change).Vh[:2])
    table = factorize(model, advice)
    a, b = (part.weight for part in model.hidden2)
    assert_close((b @ a).detach(), weight @ active @ active.mT, rtol=1e-11, atol=1e-12)
    kept = float((weight @ active).square().sum() / weight.square().sum())
    assert table.layers[0].energy_lost == pytest.approx(1 - kept)
    other = moved()
    factorize(other, advice.ranks)  # ranks alone: the truncated SVD
    assert not torch.allclose(other.hidden2[0].weight, a)
    assert advise_ranks(moved(), trajectory(moved(), 5)).active == {}


def test_the_advice_goes_into_peft():
    peft = pytest.importorskip("peft")
    pattern = advise_ranks(moved(), mlp()).rank_pattern()
    config = peft.LoraConfig(
        target_modules=["hidden1", "hidden2", "hidden3"], r=7, lora_alpha=7, rank_pattern=pattern, alpha_pattern=pattern
    )
    with torch.random.fork_rng(devices=[]):
        adapted = peft.get_peft_model(mlp(), config).base_model.model
        with pytest.warns(RuntimeWarning, match="rank_pattern keys did not match|alpha_pattern keys did not match"):
            inner = peft.get_peft_model(nn.Sequential(mlp()), config).base_model.model[0]
    layers = adapted.hidden1, adapted.hidden2, adapted.hidden3
    assert [layer.r["default"] for layer in layers] == [1, 2, 2]
    assert {layer.scaling["default"] for layer in layers} == {1.0}
    assert inner.hidden2.r["default"] == 7  # names count in full: 0.hidden2 is another layer


def test_the_advice_goes_into_deep_lora():
    """Each layer that moved is adapted at its rank, the one that did not at r."""
    peft = pytest.importorskip("peft")
    advice = advise_ranks(moved(), mlp())
    config = lowdyn.DeepLoraConfig(target_modules="all-linear", r=4, rank_pattern=advice.rank_pattern())
    adapted = peft.get_peft_model(mlp(), config).base_model.model
    ranks = {"hidden1": 1, "hidden2": 2, "hidden3": 2, "output": 4}
    assert advised(advice) == ranks | {"output": 0}
    for name, rank in ranks.items():
        layer = getattr(adapted, name)
        first, cores, _ = layer.factors("default")
        assert (layer.r["default"], len(first.weight), cores.weight.shape) == (rank, rank, (3, rank, rank))
        values = torch.linalg.svdvals(layer.get_delta_weight("default"))
        assert_close(values[:rank], torch.full((rank,), 1e-9, dtype=torch.float64), rtol=1e-9, atol=0)
        assert float(values[rank:].max()) < 1e-20


def trajectory(model, top):
    """What Spectra records of the moves of all layers, at two steps."""
    layers = {name: layer for name, layer in model.named_children() if isinstance(layer, nn.Linear)}
    moves = [layer.weight.detach() - getattr(mlp(), name).weight.detach() for name, layer in layers.items()]
    values = np.full((2, len(layers), top), np.nan)
    values[0] = 0.0
    for row, one in zip(values[1], moves, strict=True):
        found = torch.linalg.svdvals(one)[:top]
        row[: len(found)] = found
    norms = [[0.0] * len(layers), [float(one.norm()) for one in moves]]
    return xr.Dataset(
        {"move_values": (("step", "layer", "move"), values), "move_norm": (("step", "layer"), norms)},
        {"step": [0, 100], "layer": list(layers)},
    )


@pytest.mark.parametrize("top", [2, 3, 16])
def test_a_trajectory_gives_the_same_advice_as_the_start(top):
    model = moved()
    advice, expected = advise_ranks(model, trajectory(model, top)), advise_ranks(model, mlp())
    assert advice.ranks == expected.ranks
    for layer, same in zip(advice.layers, expected.layers, strict=True):
        assert (layer.name, layer.rank, layer.kept) == (same.name, same.rank, same.kept)
        assert layer.energy_lost == pytest.approx(same.energy_lost, abs=1e-13)


def test_a_tracked_training_gives_the_same_advice_as_its_start():
    """As long as the probe follows the rank's directions: values and norm of the move are all that is compared."""
    model, start = mlp(), mlp()
    few, some, all_ = trackers = [Tracker(model, Spectra(top=top), every=10) for top in (3, 6, 16)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, labels = gaussian(40, 12), torch.arange(40) % 5
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        for tracker in trackers:
            tracker.step()
    expected = advise_ranks(model, start, share=0.7)
    assert 3 < advised(expected)["hidden1"] <= 6
    for tracker in (some, all_):
        advice = advise_ranks(model, tracker.trajectory, share=0.7)
        assert (advice.ranks, advice.rank_pattern()) == (expected.ranks, expected.rank_pattern())
        for layer, same in zip(advice.layers, expected.layers, strict=True):
            assert (layer.name, layer.shape, layer.rank, layer.kept) == (same.name, same.shape, same.rank, same.kept)
            assert layer.weight_energy_lost == same.weight_energy_lost
            assert layer.energy_lost == pytest.approx(same.energy_lost, abs=1e-13)
    with pytest.raises(ValueError, match=r"of the move of hidden1 the trajectory holds 3 values, with less than 0\.7"):
        advise_ranks(model, few.trajectory, share=0.7)


def test_a_trajectory_that_follows_too_few_directions_is_refused():
    model = moved()
    with pytest.raises(ValueError, match=r"of the move of hidden2 the trajectory holds 1 values, with less than 0\.9"):
        advise_ranks(model, trajectory(model, 1))
    with pytest.raises(ValueError, match="the trajectory follows hidden1, hidden2, hidden3, output"):
        advise_ranks(nn.Sequential(*model.children()), trajectory(model, 2))


def test_a_convolution_is_the_matrix_it_applies_to_patches():
    start = built(lambda: nn.Sequential(*(nn.Conv2d(6, 6, 3) for _ in range(3))).double())
    model = copy.deepcopy(start)
    with torch.no_grad():
        model[1].weight += torch.outer(gaussian(6), gaussian(54)).reshape(6, 6, 3, 3)
    layer = advise_ranks(model, start, layers="1").layers[0]
    assert (layer.shape, layer.rank, layer.weights) == ((6, 54), 1, (324, 60))
    assert layer.energy_lost < 1e-28


def test_decay_can_be_taken_out_of_the_move():
    model = mlp()
    for layer in (model.hidden1, model.hidden2, model.hidden3, model.output):
        layer.weight.data *= 0.5
    move(model.hidden2, 5.0, 5.0)
    assert advised(advise_ranks(model, mlp(), layers="hidden2"))["hidden2"] == 2  # 50 against what decay moved
    model.hidden2.weight.data -= mlp().hidden2.weight.data * 0.45
    assert advised(advise_ranks(model, mlp(), layers="hidden2", share=0.99)) != {"hidden2": 2}
    assert advised(advise_ranks(model, mlp(), layers="hidden2", share=0.99, rescaled=True)) == {"hidden2": 2}


@given(
    values=st.lists(st.floats(0, 1e3), min_size=1, max_size=12).map(lambda v: sorted(v, reverse=True)),
    share=st.floats(0, 1),
)
def test_the_rank_of_a_share_is_minimal(values, share):
    values = torch.tensor(values, dtype=torch.float64)
    rank, energy = rank_of_energy(values, share), values.square()
    total = float(energy.sum())
    assert float(energy[:rank].sum()) >= share * total - 1e-12 * total
    assert rank == 0 or float(energy[: rank - 1].sum()) <= share * total + 1e-12 * total


def test_the_tables_read_well():
    pandas = pytest.importorskip("pandas")
    rich = pytest.importorskip("rich.console")
    model = moved()
    advice = advise_ranks(model, mlp())
    text = str(advice).splitlines()
    assert text[0].split()[:5] == ["layer", "shape", "rank", "energy", "lost"]
    assert text[3].split()[:6] == ["hidden2", "20", "x", "30", "2", "0.04762"]
    assert text[-1] == "ranks hold 0.9 of each move's energy; weights 1 960 -> 780 (0.398)"
    table = factorize(model, advice)
    frame = pandas.DataFrame(table.rows())
    assert frame["rank"].tolist() == [2, 2]
    console = rich.Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    drawn = console.export_text()
    assert "hidden2" in drawn
    assert "parameters 2 055 -> 875" in drawn


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (mlp().state_dict, r"none of hidden1, hidden2, hidden3, output moved from the reference"),
        (lambda: {}, "the reference has no hidden1.weight; it has nothing"),
        (lambda: MLP((12, 30, 21, 40, 5), generator=seeded()), r"hidden2.weight is \(20, 30\), .* \(21, 30\)"),
        (
            lambda: xr.Dataset({"loss": ("step", [1.0])}),
            "this trajectory holds loss; advice needs move_values and move_norm",
        ),
        (lambda: xr.Dataset(), "this trajectory holds nothing"),
    ],
)
def test_a_reference_that_is_no_start_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        advise_ranks(mlp(), reference())


def test_arguments_are_checked():
    for arguments, message in (
        ({"share": 1.5}, "share must be at most 1, got 1.5"),
        ({"share": 0.0}, "share must be above 0"),
        ({"layers": "attn"}, "no linear or convolutional layer matches 'attn'"),
    ):
        with pytest.raises(ValueError, match=message):
            advise_ranks(moved(), mlp(), **arguments)
    with pytest.raises(ValueError, match="a trajectory holds moves that are not rescaled"):
        advise_ranks(moved(), xr.Dataset(), rescaled=True)


def test_energies_are_of_squares():
    model = mlp()
    move(model.hidden2, 3.0, 4.0)
    (layer,) = advise_ranks(model, mlp(), layers="hidden2", share=0.5).layers
    assert_close(torch.tensor(layer.energy_lost), torch.tensor(9 / 25))
