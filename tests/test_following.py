import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lowdyn import DeepLinearNetwork, Spectra, Tracker
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.observe.summary import summarize
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")

TOP = 2
SHAPES = {"tall": (230, 200), "wide": (200, 230)}


def linear(shape):
    model = MLP((shape[1], shape[0]), generator=seeded())
    model.factors[0].weight.data.add_(
        sum(
            scale * torch.outer(*(random_orthogonal(d, 1, generator=seeded(d + scale))[:, 0] for d in shape)).float()
            for scale in (4, 3)
        )
    )
    return model


def moving(model, seed):
    """A step of training: two directions that grow, and noise."""
    weight = model.factors[0].weight.data
    for place in (0, 1):
        left, right = (random_orthogonal(d, 2, generator=seeded(d))[:, place] for d in weight.shape)
        weight += (0.2 + 0.1 * place) * torch.outer(left, right).float()
    weight += 1e-4 * gaussian(*weight.shape, seed=seed, dtype=torch.float32)


def both(shape, steps=6, **options):
    """The same training seen exactly and warm."""
    model = linear(shape)
    trackers = [Tracker(model, Spectra(top=TOP, method=method, **options), every=1) for method in ("exact", "auto")]
    for step in range(steps):
        moving(model, step)
        for tracker in trackers:
            tracker.step()
    return [tracker.trajectory.isel(layer=0) for tracker in trackers]


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_records_are_the_exact_ones_within_their_bounds(shape):
    exact, warm = both(SHAPES[shape])
    assert warm["exact"].values.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert warm["index"].values.tolist() == [0, 1, -2, -1]
    for name, bound in (("singular_values", "value_bounds"), ("move_values", "move_bounds")):
        error = np.abs(warm[name].values[:, :TOP] - exact[name].values[:, :TOP])
        assert (error <= warm[bound].values[:, :TOP] + exact[bound].values[:, :TOP]).all()
        assert (error <= 1e-4 * exact[name].values[:, :TOP]).all()
        assert (warm[bound].values[:, :TOP] < 1e-3 * exact[name].values.max()).all()
    for side in ("left", "right"):
        # A vector is off by its residual over a gap, here some 1e-3, where a value is off by the square of that.
        np.testing.assert_allclose(warm[f"{side}_angles"][:, :TOP], exact[f"{side}_angles"][:, :TOP], atol=5e-3)
        error = np.abs(warm[f"{side}_turn"] - exact[f"{side}_turn"]).values[:, 0]
        assert (error <= warm[f"{side}_turn_bounds"].values[:, 0]).all()
    # Made of top values, which warm blocks know to 1e-4, and of what these leave of the norm.
    for name in ("stable_rank", "bulk_rms", "move_norm", "outside_energy"):
        np.testing.assert_allclose(warm[name], exact[name], rtol=1e-3, atol=1e-5)


def test_what_a_warm_record_does_not_see_is_no_number():
    _, warm = both(SHAPES["tall"], steps=2)
    for name in ("numerical_rank", "effective_rank", "bulk"):
        assert np.isnan(warm[name].values[1:]).all()
        assert np.isfinite(warm[name].values[0]).all()
    for name in ("singular_values", "left_angles", "right_angles"):
        assert np.isnan(warm[name].values[1:, TOP:]).all()
        assert np.isfinite(warm[name].values[0]).all()
    assert np.isnan(warm["left_turn"].values[1:, 1:]).all()


def test_a_bound_that_is_too_large_makes_the_record_exact():
    model = MLP((200, 230), generator=seeded())  # rounding of float32 alone is more than 1e-7
    for tolerance, expected in ((0.1, 0.0), (1e-7, 1.0)):
        tracker = Tracker(model, Spectra(top=TOP, tolerance=tolerance), every=1)
        tracker.step()
        assert tracker.trajectory["exact"].values[1, 0] == expected


def test_the_reference_step_is_exact():
    exact, warm = both(SHAPES["tall"], reference=3)
    assert warm["exact"].values.tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert np.isnan(warm["left_turn"].values[:3]).all()
    assert np.isnan(warm["move_values"].values[:3]).all()
    np.testing.assert_allclose(warm["move_values"][3], 0)
    # 1e-4 is what warm values promise.
    np.testing.assert_allclose(warm["move_values"], exact["move_values"][:, :TOP], rtol=1e-4)


def test_bases_serve_warm_records_too():
    bases = {"output": tuple(random_orthogonal(d, 2, generator=seeded(d)) for d in SHAPES["tall"])}
    exact, warm = both(SHAPES["tall"], steps=3, reference=bases)
    assert warm["exact"].values.tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(warm["left_turn"][:, 0], exact["left_turn"][:, 0], atol=5e-3)


def test_a_degenerate_reference_gives_no_warm_angle_either():
    model = MLP((200, 230), generator=seeded(), dtype=torch.float64)
    model.factors[0].weight.data.copy_(3 * random_orthogonal(230, 200, generator=seeded()))
    look = Spectra(top=TOP).begin(model)
    with pytest.warns(UserWarning, match="degenerate"):
        look(0)
    moving(model, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = look(1)
    assert record["exact"][1] == 0
    assert np.isnan(record["left_angles"][1]).all()
    assert np.isnan(record["right_turn"][1]).all()


def test_angles_within_a_flat_bulk_are_given_with_their_bound():
    model = MLP((200, 230), generator=seeded())
    trackers = [Tracker(model, Spectra(top=TOP, method=method), every=1) for method in ("exact", "auto")]
    model.factors[0].weight.data += 2e-4 * gaussian(230, 200, seed=3, dtype=torch.float32)
    for tracker in trackers:
        tracker.step()
    exact, warm = (tracker.trajectory.isel(layer=0, step=1) for tracker in trackers)
    assert warm["exact"] == 0
    np.testing.assert_allclose(warm["left_angles"][:TOP], exact["left_angles"][:TOP], atol=0.1)
    assert abs(warm["left_turn"] - exact["left_turn"])[0] <= warm["left_turn_bounds"][0]


def test_factors_of_deep_linear_networks_are_exact_unless_asked():
    network = DeepLinearNetwork((200, 200), generator=seeded(), start=lambda *shape, **_: gaussian(*shape))
    assert not Spectra(top=TOP).begin(network).compact
    assert Spectra(top=TOP, method="warm").begin(network).compact
    assert not Spectra(top=TOP).begin(MLP((100, 100), generator=seeded())).compact
    assert not Spectra(top=0).begin(MLP((200, 200), generator=seeded())).compact


def test_small_layers_beside_large_ones_show_their_ends():
    model = MLP((200, 200, 3), generator=seeded())
    record = Spectra(top=TOP).begin(model)(0)
    values = record["singular_values"][1]
    small = np.linalg.svd(model.weights[1].double(), compute_uv=False)
    np.testing.assert_allclose(values[1][[0, 1, 3]], small, rtol=1e-12)
    assert np.isnan(values[1][2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type(dtype):
    model = linear(SHAPES["tall"]).to(dtype)
    tracker = Tracker(model, Spectra(top=TOP), every=1)
    model.factors[0].weight.data.mul_(1.5)
    tracker.step()
    seen = tracker.trajectory.isel(layer=0, step=1)
    expected = torch.linalg.svdvals(model.weights[0].double())[:TOP]
    assert seen["exact"] == 0
    # 1e-4 is what warm values promise; the expected ones are of the same, already rounded weight.
    np.testing.assert_allclose(seen["singular_values"][:TOP], expected, rtol=1e-4)


def test_exact_records_hold_the_move_and_the_ranks():
    network = DeepLinearNetwork.from_weights([gaussian(5, 4)])
    look = Spectra(top=2).begin(network)
    first = look(0)
    assert first["move_values"][1].tolist() == [[0, 0]]
    assert first["outside_energy"][1].tolist() == [0]
    start = network.weights[0].clone()
    network.weights[0].add_(gaussian(5, 4, seed=1))
    record = {name: value[0] for name, (_, value) in look(1).items()}
    moved = np.linalg.svd((network.weights[0] - start).numpy(), compute_uv=False)
    np.testing.assert_allclose(record["move_values"], moved[:2], rtol=1e-12)
    np.testing.assert_allclose(record["move_norm"], np.linalg.norm(moved), rtol=1e-12)
    np.testing.assert_allclose(record["outside_energy"], (moved[2:] ** 2).sum() / (moved**2).sum(), rtol=1e-12)
    found = summarize(network.weights[0], top=2)
    for name in ("numerical_rank", "stable_rank", "effective_rank"):
        np.testing.assert_allclose(record[name], getattr(found, name), rtol=1e-12)
    np.testing.assert_allclose(record["bulk"], found.bulk, rtol=1e-12)
    np.testing.assert_allclose(
        record["bulk_rms"], found.values.new_tensor(record["bulk"][[0, 4]]).square().mean().sqrt()
    )
    assert (record["value_bounds"] <= 1e-14).all()


def test_a_look_goes_on_from_its_state():
    model = linear(SHAPES["tall"])
    look = Spectra(top=TOP).begin(model)
    look(0)
    moving(model, 0)
    look(1)
    again = Spectra(top=TOP).begin(copy.deepcopy(model))
    again.load_state_dict(look.state_dict())
    for one in (look, again):
        matrix = next(iter(one.followed.values())).matrix
        with torch.no_grad():
            matrix.module.weight.mul_(1.01)
    for (name, (_, first)), (_, second) in zip(look(2).items(), again(2).values(), strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)


class Conv1D(nn.Module):
    """A linear layer stored as (in, out), as transformers' own of this name."""

    def __init__(self, rows, columns):
        super().__init__()
        self.nf, self.weight = rows, nn.Parameter(gaussian(columns, rows))


@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_held_lies_in_memory_as_a_file_gives_it_back(steps):
    """Otherwise products after a resume differ in the last digit."""
    model = Conv1D(*SHAPES["tall"])
    look = Spectra(top=TOP).begin(model)
    for step in range(steps):
        look(step)
    state = look.state_dict()
    assert {"0.start", "0.block.weight", "0.block.move", "0.left.basis"} <= state.keys()
    assert not [name for name, value in state.items() if not value.is_contiguous()]


def test_a_shared_layer_is_followed_once():
    model = nn.Sequential(*[linear((230, 230)).factors[0]] * 3)
    assert Spectra(top=TOP).begin(model).coords["layer"] == ["0"]
