import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdyn.linalg import random_orthogonal
from lowdyn.observe import enclosure
from lowdyn.observe.enclosure import enclose, outside_bound
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")

ROWS, COLUMNS, TOP = 220, 200, 2
WIDTH = TOP + enclosure.EXTRA


def matrix_of(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    left = random_orthogonal(ROWS, len(values), generator=seeded(seed))
    return left @ torch.diag(values) @ random_orthogonal(len(values), COLUMNS, generator=seeded(seed + 1))


def cold(seed=5):
    return random_orthogonal(COLUMNS, WIDTH, generator=seeded(seed))


SPECTRA = {
    "flat": gaussian(ROWS, COLUMNS) / math.sqrt(ROWS),
    "spiked": gaussian(ROWS, COLUMNS) / math.sqrt(ROWS) + 5 * matrix_of([1.0, 0.9, 0.8]),
    "decaying": matrix_of(0.8 ** np.arange(COLUMNS)),
    "low rank": matrix_of([3.0, 2.0, 1.0]),
    "one": matrix_of([2.0]),
    "equal": matrix_of([1.0] * COLUMNS),
    "pairs": matrix_of(np.repeat(np.linspace(1, 0.01, COLUMNS // 2), 2)),
    "tiny": 1e-25 * gaussian(ROWS, COLUMNS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_values_are_enclosed_and_settle(name, dtype):
    matrix = SPECTRA[name].to(dtype)
    exact = torch.linalg.svdvals(matrix.double())
    found = enclose(matrix, cold().to(dtype), TOP, seeded())
    error = (found.values - exact[:TOP]).abs()
    assert (error <= found.bounds).all()
    assert found.settled
    # The aim of 1e-4 relative, or of the rounding of float32 where a value is 0.
    assert (error <= 1e-4 * exact[:TOP] + 1e-6 * exact[0]).all()
    np.testing.assert_allclose(found.norm, np.linalg.norm(exact), rtol=1e-5)


@pytest.mark.parametrize("moved", [0.0, 1e-3, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("name", ["flat", "spiked", "decaying", "pairs"])
def test_settled_from_a_warm_block_means_within_the_aim(name, moved):
    block = torch.linalg.svd(SPECTRA[name])[2].mT[:, :WIDTH].contiguous()
    for seed in range(5):
        matrix = SPECTRA[name] + moved * gaussian(ROWS, COLUMNS, seed=10 + seed) / math.sqrt(ROWS)
        found = enclose(matrix, block, TOP, seeded())
        exact = torch.linalg.svdvals(matrix)[:TOP]
        assert found.settled
        assert ((found.values - exact).abs() <= 1e-4 * exact).all()


def test_a_small_move_takes_two_blocks(monkeypatch):
    monkeypatch.setattr(enclosure, "BLOCKS", 2)
    block = torch.linalg.svd(SPECTRA["spiked"])[2].mT[:, :WIDTH].contiguous()
    moves = (moved * gaussian(ROWS, COLUMNS, seed=10) / math.sqrt(ROWS) for moved in (1e-2, 1.0))
    settled = [enclose(SPECTRA["spiked"] + move, block, TOP, seeded()).settled for move in moves]
    assert settled == [True, False]


@pytest.mark.parametrize("name", ["spiked", "decaying"])
def test_values_above_the_bulk_have_a_quadratic_bound(name):
    found = enclose(SPECTRA[name], cold(), TOP, seeded())
    assert found.bounds.max() < 2e-5 * found.values[0]


def test_vectors_and_how_far_they_may_be_off():
    matrix = SPECTRA["spiked"]
    left, _, right_t = np.linalg.svd(matrix.numpy(), full_matrices=False)
    found = enclose(matrix, cold(), TOP, seeded())
    for ours, true, bound, single in zip(
        (found.left, found.right), (left[:, :TOP], right_t.T[:, :TOP]), found.turned, found.single_turned, strict=True
    ):
        turned = scipy.linalg.subspace_angles(ours.numpy(), true)[0]
        assert turned <= bound < 0.1
        for place in range(TOP):
            one = slice(place, place + 1)
            assert scipy.linalg.subspace_angles(ours.numpy()[:, one], true[:, one])[0] <= single[place] < 0.1


def test_nothing_is_said_of_vectors_that_do_not_stand_apart():
    found = enclose(SPECTRA["equal"], cold(), TOP, seeded())
    assert found.turned == (math.pi / 2, math.pi / 2)
    assert all((single == math.pi / 2).all() for single in found.single_turned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_trace_bounds_the_outside_the_bound_of_the_norm_counts(dtype, monkeypatch):
    probes = enclosure.outside_bound
    monkeypatch.setattr(enclosure, "outside_bound", lambda *given: (1.0, probes(*given)[1]))
    found = enclose(SPECTRA["one"].to(dtype), cold().to(dtype), TOP, seeded())
    # σ_2 is 0: what is not excluded is what ‖W‖_F² may hold beside σ_1².
    assert found.values[1] ** 2 + 2 * found.norm * found.norm_bound <= (found.values[1] + found.bounds[1]) ** 2
    assert found.bounds[1] < 0.01 * found.norm


def test_zeros():
    found = enclose(torch.zeros(ROWS, COLUMNS), cold().float(), TOP, seeded())
    assert found.values.tolist() == found.bounds.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value):
    matrix = SPECTRA["flat"].float()
    matrix[3, 4] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        enclose(matrix, cold().float(), TOP, seeded())


def test_values_beyond_the_squares_of_float32():
    matrix = 1e25 * SPECTRA["spiked"].float()
    found = enclose(matrix, cold().float(), TOP, seeded())
    np.testing.assert_allclose(found.values, torch.linalg.svdvals(matrix.double())[:TOP], rtol=1e-4)


def test_a_block_that_is_its_own_image():
    # Residuals of nothing but zeros: the space must not be filled with what is in it already.
    matrix = torch.diag(torch.arange(COLUMNS, 0.0, -1.0, dtype=torch.float64))
    found = enclose(matrix, torch.eye(COLUMNS, WIDTH, dtype=torch.float64), TOP, seeded())
    np.testing.assert_allclose(found.values, [COLUMNS, COLUMNS - 1], rtol=1e-12)
    np.testing.assert_allclose(found.block.T @ found.block, np.eye(WIDTH), atol=1e-12)


def test_a_run_of_perturbations_stays_enclosed():
    matrix, block, generator = SPECTRA["flat"].float(), cold().float(), seeded()
    rise = torch.outer(*(random_orthogonal(d, 1, generator=seeded(d))[:, 0] for d in (ROWS, COLUMNS))).float()
    for step in range(12):
        matrix = matrix + 0.4 * rise + 0.002 * gaussian(ROWS, COLUMNS, seed=step, dtype=torch.float32)
        found = enclose(matrix, block, TOP, generator)
        exact = torch.linalg.svdvals(matrix.double())[:TOP]
        assert ((found.values - exact).abs() <= found.bounds).all()
        assert ((found.values - exact).abs() <= 1e-4 * exact).all()
        block = found.block


def test_a_direction_that_the_block_cannot_see_is_bounded_and_then_found():
    # Block-diagonal: nothing of the new value 10 couples to the old block, whatever the power of A.
    e = torch.eye(COLUMNS, dtype=torch.float64)
    matrix = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    matrix[:100, :100] = SPECTRA["flat"][:100, :100]
    matrix[150, 150] = 10.0
    block = torch.linalg.qr(torch.cat([gaussian(100, WIDTH), torch.zeros(100, WIDTH)]).double())[0]
    first = enclose(matrix, block, TOP, seeded())
    assert first.values[0] < 5
    assert first.values[0] + first.bounds[0] >= 10.0  # not known, and said so
    second = enclose(matrix, first.block, TOP, seeded(1))
    np.testing.assert_allclose(second.values[0], 10.0, rtol=1e-10)
    np.testing.assert_allclose(abs(second.right[:, 0] @ e[150]), 1.0, rtol=1e-10)


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.7, 1.0]), st.booleans())
def test_enclosures_hold_for_any_spectrum(seed, decay, warm):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(size=COLUMNS) ** (1 / decay))[::-1].copy()
    matrix = matrix_of(values, seed)
    block = torch.linalg.svd(matrix)[2].mT[:, :WIDTH].contiguous() if warm else cold(seed)
    found = enclose(matrix, block, TOP, seeded(seed))
    assert (np.abs(found.values.numpy() - values[:TOP]) <= found.bounds.numpy()).all()


@pytest.mark.parametrize("name", SPECTRA)
def test_the_certificate_bounds_what_is_outside(name):
    matrix = SPECTRA[name]
    norm = float(matrix.norm())
    space = cold()
    outside = matrix - (matrix @ space) @ space.mT
    true = float(torch.linalg.matrix_norm(outside, 2)) ** 2 / norm**2
    bounds = [outside_bound(matrix, space, norm, seeded(seed))[0] for seed in range(20)]
    assert min(bounds) >= true
    assert max(bounds) <= 2.5 * true  # σ within a factor of 1.6


def test_the_certificate_fails_as_rarely_as_it_says(monkeypatch):
    # At a probability of failure of one half, which can be counted: a rank-one operator fails at exactly that rate,
    # because then all of the measure but its rounding lies at one point.
    monkeypatch.setattr(enclosure, "FAILURE", 0.5)
    matrix, nowhere = SPECTRA["flat"], torch.zeros(COLUMNS, 1, dtype=torch.float64)
    norm = float(matrix.norm())
    true = float(torch.linalg.matrix_norm(matrix, 2)) ** 2 / norm**2
    fails = [outside_bound(matrix, nowhere, norm, seeded(seed))[0] < true for seed in range(200)]
    assert np.mean(fails) < 0.5 + 4 * math.sqrt(0.25 / 200)
    monkeypatch.setattr(enclosure, "FAILURE", 1 - 1e-9)
    assert any(outside_bound(matrix, nowhere, norm, seeded(seed))[0] < true for seed in range(20))


def test_more_certainty_costs_width(monkeypatch):
    matrix, space = SPECTRA["flat"], cold()
    norm, bounds = float(matrix.norm()), []
    for failure in (1e-3, 1e-6, 1e-9, 1e-12):
        monkeypatch.setattr(enclosure, "FAILURE", failure)
        bounds.append(outside_bound(matrix, space, norm, seeded())[0])
    assert all(looser > tighter for tighter, looser in pairwise(bounds))
