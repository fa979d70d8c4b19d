import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent
from lowdyn.dynamics import invariant_frames, stable_lr
from lowdyn.linalg import principal_angles, random_orthogonal
from lowdyn.networks import MLP
from lowdyn.observe.subspaces import active_subspace, outside_share
from lowdyn.problems import Factorization, Regression, low_rank_target
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def moved_by(*values, rows=6, columns=5, seed=0):
    """A start, the start moved by a matrix of known singular values, and that matrix's singular vectors."""
    start = gaussian(rows, columns, seed=seed)
    left = random_orthogonal(rows, len(values), generator=seeded(seed + 1))
    right = random_orthogonal(columns, len(values), generator=seeded(seed + 2))
    return [start, start + (left * torch.tensor(values, dtype=torch.float64)) @ right.T], left, right


def course(network, problem, descent, *, times, every):
    """The weights of each layer over ``times`` records, copied."""
    seen = [[weight.clone() for weight in network.weights]]
    for _ in range(times):
        gradient_descent(network, problem, descent, every, every=every)
        seen.append([weight.clone() for weight in network.weights])
    return [list(layer) for layer in zip(*seen, strict=True)]


# --- a known move


def test_a_known_move_is_found():
    weights, left, right = moved_by(4.0, 2.0, 1.0)
    moved = active_subspace(weights)
    assert_close(moved.values, torch.tensor([4.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64), rtol=1e-13, atol=1e-14)
    assert (moved.left.shape, moved.right.shape, moved.dimension, moved.scale) == ((6, 5), (5, 5), 3, 1.0)
    for basis, truth in zip(moved.bases(), (left, right), strict=True):
        assert float(principal_angles(basis, truth)[0]) < 1e-13
    assert_close(weights[1] - weights[0], (moved.left * moved.values) @ moved.right.T, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("share", "dimension"), [(0.0, 0), (0.7, 1), (16.1 / 21, 2), (0.9, 2), (0.96, 3), (1 - 1e-12, 3)]
)
def test_the_dimension_is_the_smallest_that_holds_the_share(share, dimension):
    assert active_subspace(moved_by(4.0, 2.0, 1.0)[0], share=share).dimension == dimension  # 16, 4 and 1 of 21


def test_shares_of_energy_and_norm():
    moved = active_subspace(moved_by(4.0, 2.0, 1.0)[0])
    assert [moved.energy(top) for top in (0, 1, 2, 3, 9)] == pytest.approx([0, 16 / 21, 20 / 21, 1, 1], abs=1e-15)
    expected = [1, math.sqrt(5 / 21), math.sqrt(1 / 21), 0, 0]
    assert [moved.outside(top) for top in (0, 1, 2, 3, 9)] == pytest.approx(expected, abs=1e-15)


def test_a_tiny_share_outside_is_a_number():
    moved = active_subspace([torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1e-12, 0.0], dtype=torch.float64))])
    assert moved.outside(1) == pytest.approx(1e-12, rel=1e-12)
    # Its energy, 1e-24, is less than rounding leaves of a share near 1: two needs to be asked for.
    assert (moved.dimension, active_subspace(moved_by(1.0, 1e-5)[0], share=1 - 1e-12).dimension) == (1, 2)


def test_a_dimension_may_be_given():
    weights, left, _ = moved_by(4.0, 2.0, 1.0)
    moved = active_subspace(weights, dimension=1)
    assert moved.dimension == 1
    assert [basis.shape for basis in moved.bases()] == [(6, 1), (5, 1)]
    assert [basis.shape for basis in moved.bases(2)] == [(6, 2), (5, 2)]
    assert_close((moved.bases()[0] * left[:, :1]).sum().abs(), torch.ones((), dtype=torch.float64))
    assert active_subspace(weights, dimension=99).dimension == 5


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 5))
def test_it_does_not_depend_on_the_coordinates(rows, columns, seed):
    weights = [gaussian(rows, columns, seed=seed + time) for time in range(3)]
    outer = random_orthogonal(rows, rows, generator=seeded(seed))
    inner = random_orthogonal(columns, columns, generator=seeded(seed + 1))
    moved = active_subspace(weights, share=0.8)
    turned = active_subspace([outer @ weight @ inner for weight in weights], share=0.8)
    assert_close(turned.values, moved.values, rtol=1e-10, atol=1e-12)
    assert turned.dimension == moved.dimension
    shares = outside_share(weights, *moved.bases())
    again = outside_share([outer @ weight @ inner for weight in weights], *turned.bases())
    assert_close(again, shares, rtol=1e-8, atol=1e-10)


# --- every form of a sequence


def test_lists_arrays_tensors_and_generators_are_the_same():
    weights = [gaussian(3, 4, seed=time) for time in range(4)]
    stacked = torch.stack(weights)
    expected = active_subspace(weights)
    for form in (stacked, stacked.numpy(), tuple(stacked.numpy()), (weight for weight in weights), stacked.tolist()):
        assert_close(active_subspace(form).values, expected.values, rtol=1e-14, atol=0)
    bases = expected.bases(1)
    for form in (stacked.numpy(), (weight for weight in weights)):
        assert_close(outside_share(form, *bases), outside_share(weights, *bases), rtol=1e-14, atol=0)


def test_a_live_parameter_may_be_yielded():
    network = MLP((4, 4, 3), generator=seeded())
    weight = network.weights[0]
    copies = []

    def training():
        for time in range(4):
            copies.append(weight.clone())
            yield weight
            weight.add_(gaussian(4, 4, seed=time).to(weight))

    moved = active_subspace(training())
    assert_close(moved.values, torch.linalg.svdvals(copies[3].double() - copies[0].double()), rtol=1e-12, atol=0)


def test_few_matrices_are_held():
    held = []

    def stream():
        for time in range(20):
            yield gaussian(37, 41, seed=time)
        held.append(sum(type(thing) is torch.Tensor and thing.shape == (37, 41) for thing in gc.get_objects()))

    moved = active_subspace(stream())
    outside_share(stream(), *moved.bases())
    assert max(held) <= 8


def test_arithmetic_is_in_float64():
    start, end = torch.full((2, 2), 1.0, dtype=torch.float32), torch.full((2, 2), 1.0, dtype=torch.float32)
    end[0, 0] += 1e-6
    moved = active_subspace([start, end])
    assert moved.values.dtype == torch.float64
    assert float(moved.values[0]) == float(end[0, 0].double() - 1)


def test_what_did_not_move_has_no_dimension():
    weight = gaussian(3, 4)
    moved = active_subspace([weight, weight])
    assert (moved.dimension, moved.energy(1), moved.outside(0), moved.bases()[0].shape) == (0, 1.0, 0.0, (3, 0))
    assert outside_share([weight, weight, weight], *moved.bases()).tolist() == [0.0, 0.0, 0.0]


# --- outside


def test_the_share_outside_is_that_of_the_three_other_blocks():
    e = torch.eye(4, dtype=torch.float64)
    moves = [torch.outer(e[0], e[0]), torch.outer(e[0], e[3]), torch.outer(e[3], e[0]), torch.outer(e[3], e[3])]
    weights = [e, *(e + move for move in moves), e + 3 * moves[0] + 4 * moves[3], e]
    shares = outside_share(weights, e[:, :2], e[:, :1])
    assert_close(shares, torch.tensor([0, 0, 1, 1, 1, 0.8, 0], dtype=torch.float64), rtol=1e-14, atol=1e-15)


def test_an_early_move_elsewhere_is_seen():
    weights, *_ = moved_by(4.0, 2.0)
    detour = weights[0] + 1e-3 * gaussian(6, 5, seed=9)
    still = outside_share(weights, *active_subspace(weights).bases())
    assert float(still.max()) < 1e-14
    assert float(outside_share([weights[0], detour, weights[1]], *active_subspace(weights).bases()).max()) > 0.5


# --- the law of parsimony


def parsimony(*, outputs=16, depth=3, init_scale=0.3, weight_decay=0.0):
    problem = Factorization(low_rank_target(outputs, 16, rank=2, generator=seeded(1)))
    network = DeepLinearNetwork((*[16] * depth, outputs), init_scale, generator=seeded(2))
    lr = 0.2 * stable_lr(problem, depth, weights=network.weights)
    return network, problem, Descent(lr, weight_decay=weight_decay)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("init_scale", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
def test_but_for_a_scale_the_moves_are_in_2r_directions(depth, init_scale, weight_decay):
    network, problem, descent = parsimony(depth=depth, init_scale=init_scale, weight_decay=weight_decay)
    frames = invariant_frames(network, problem)
    for layer, weights in enumerate(course(network, problem, descent, times=4, every=150)):
        moved = active_subspace(weights, share=1 - 1e-13, rescaled=True)
        assert moved.dimension <= 4
        assert moved.outside(4) < 1e-11
        bases = frames.bases[layer + 1], frames.bases[layer]
        assert float(outside_share(weights, *bases, rescaled=True).max()) < 1e-10
        inert = torch.linalg.svdvals(weights[-1])[8] / init_scale
        assert moved.scale == pytest.approx(float(inert), rel=1e-12)


def test_the_scale_is_a_move_of_full_rank():
    network, problem, descent = parsimony(init_scale=1.0)
    for weights in course(network, problem, descent, times=1, every=600):
        plain, rescaled = active_subspace(weights), active_subspace(weights, rescaled=True)
        assert int(torch.isclose(plain.values, plain.values.new_tensor(1 - rescaled.scale), rtol=1e-10).sum()) == 12
        assert plain.dimension > 12
        assert rescaled.dimension <= 4


def test_from_a_small_start_the_scale_does_not_count():
    network, problem, descent = parsimony(init_scale=0.01)
    for weights in course(network, problem, descent, times=5, every=400):
        moved = active_subspace(weights)
        assert moved.dimension <= 4
        assert moved.energy(4) > 1 - 1e-6


def test_weight_decay_alone_turns_nothing():
    weights = [gaussian(6, 4), 0.7 * gaussian(6, 4)]
    assert active_subspace(weights, share=1 - 1e-9).dimension == 4
    moved = active_subspace(weights, rescaled=True)
    assert moved.scale == pytest.approx(0.7, rel=1e-13)
    assert float(moved.values[0]) < 1e-14


def test_wide_layers_without_white_inputs_move_nearly_in_2_outputs():
    # The measure of C8 at a third of its size.
    inputs, targets = gaussian(12, 100), gaussian(1, 100, seed=1)
    network = DeepLinearNetwork((12, 12, 12, 1), 1.0, generator=seeded(2))
    for weights in course(network, Regression(inputs, targets), Descent(0.1), times=3, every=300)[:-1]:
        moved = active_subspace(weights)
        assert moved.outside(2) < 0.05
        assert moved.energy(2) > 0.99


def test_its_bases_are_a_reference_for_spectra():
    network, problem, descent = parsimony(init_scale=1.0)
    layers = course(network, problem, descent, times=2, every=300)
    bases = {f"W{layer}": active_subspace(seen, rescaled=True).bases(4) for layer, seen in enumerate(layers, start=1)}
    trajectory = gradient_descent(network, problem, descent, 5, Spectra(top=2, reference=bases), every=5)
    # The leading directions, which grew, lie in the subspace that moved.
    assert float(np.nanmax(trajectory["right_turn"].sel(part="leading"))) < 1e-6


# --- refusals


@pytest.mark.parametrize(
    ("weights", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "at least one later matrix, got 0"),
        ([np.eye(2)], {}, ValueError, "at least one later matrix, got 1"),
        ([np.eye(2), np.eye(3)], {}, ValueError, r"\(2, 2\) as the first; weight 1 is \(3, 3\)"),
        ([np.zeros((2, 2, 2))] * 2, {}, ValueError, r"one shape, \(out, in\); weight 0 is \(2, 2, 2\)"),
        ([np.eye(2), np.full((2, 2), np.nan)], {}, ValueError, "NaN or infinite"),
        ([np.eye(2), "no"], {}, TypeError, "must be a matrix of numbers"),
        ([np.eye(2)] * 2, {"share": 1.1}, ValueError, "share must be at most 1"),
        ([np.eye(2)] * 2, {"share": -0.1}, ValueError, "share must be at least 0"),
        ([np.eye(2)] * 2, {"dimension": 1.5}, TypeError, "dimension must be a whole number"),
        ([np.zeros((2, 2)), np.eye(2)], {"rescaled": True}, ValueError, "pass rescaled=False"),
    ],
)
def test_what_did_not_move_anywhere_is_refused(weights, arguments, error, message):
    with pytest.raises(error, match=message):
        active_subspace(weights, **arguments)


def test_what_does_not_fit_is_refused():
    e = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"left \(3, 1\) and right \(2, 1\) must be \(out, k\) and \(in, m\)"):
        outside_share([e, e], e[:, :1], e[:2, :1])
    with pytest.raises(ValueError, match="columns of right are not orthonormal"):
        outside_share([e, e], e[:, :1], 2 * e[:, :1])
    with pytest.raises(ValueError, match="top must be at least 0"):
        active_subspace([e, 2 * e]).energy(-1)


def test_a_move_within_bases_of_float32_has_nothing_outside():
    bases = [random_orthogonal(d, 3, generator=seeded(d), dtype=torch.float32) for d in (40, 30)]
    move = bases[0].double() @ gaussian(3, 3) @ bases[1].double().T
    assert float(outside_share([torch.zeros_like(move), move], *bases)[1]) < 1e-14
