import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn.linalg import (
    low_rank_factors,
    numerical_rank,
    orthonormal_basis,
    principal_angles,
    random_orthogonal,
    rank_of_energy,
    whiten,
)
from lowdyn.problems import low_rank_target
from tests.cases import gaussian, seeded, tilted_plane

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
sides = st.integers(1, 8)


def assert_orthonormal_columns(basis, tolerance=1e-14):
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype).expand(*basis.shape[:-2], -1, -1)
    assert_close(basis.mT @ basis, identity, rtol=0, atol=tolerance)


# --- random_orthogonal


@given(rows=sides, columns=sides, runs=st.sampled_from([(), (3,), (2, 2)]))
def test_random_orthogonal_has_orthonormal_rows_or_columns(rows, columns, runs):
    q = random_orthogonal(rows, columns, runs=runs, generator=seeded())
    assert q.shape == (*runs, rows, columns)
    assert_orthonormal_columns(q if rows >= columns else q.mT)


def test_random_orthogonal_follows_its_generator_and_dtype():
    first, again = (random_orthogonal(4, 4, generator=seeded(1)) for _ in range(2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, random_orthogonal(4, 4, generator=seeded(2)))
    assert random_orthogonal(4, 4, generator=seeded(1), dtype=torch.float32).dtype == torch.float32


def test_random_orthogonal_is_haar():
    # Diaconis and Shahshahani 1994: under Haar measure on O(d) the powers of the trace have the moments of a standard
    # normal number, exactly up to order 2d. A QR factor whose signs are LAPACK's has a mean trace of -1.07 instead.
    runs, d = 20_000, 5
    trace = torch.diagonal(random_orthogonal(d, d, runs=(runs,), generator=seeded()), dim1=-2, dim2=-1).sum(dim=-1)
    for power, (moment, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert float(trace.pow(power).mean()) == pytest.approx(moment, abs=4 * math.sqrt(variance / runs))


@pytest.mark.parametrize("shape", [(5, 2), (2, 5)])
def test_random_frames_are_spread_evenly(shape):
    # Every entry has mean 0 and variance 1/5, whichever side is the longer; ± 4 standard errors.
    entries = random_orthogonal(*shape, runs=(20_000,), generator=seeded())
    assert_close(entries.mean(dim=0), torch.zeros(shape, dtype=torch.float64), rtol=0, atol=4 * 0.45 / 141)
    assert_close(entries.square().mean(dim=0), torch.full(shape, 0.2, dtype=torch.float64), rtol=0, atol=4 * 0.24 / 141)


# --- numerical_rank and orthonormal_basis


@given(rows=sides, columns=sides, rank=sides)
def test_rank_is_numpys(rows, columns, rank):
    matrix = gaussian(rows, rank) @ gaussian(rank, columns, seed=1)
    values = torch.linalg.svdvals(matrix)
    assert numerical_rank(values, rows=rows, columns=columns) == np.linalg.matrix_rank(matrix.numpy())


def test_rank_of_zero_and_with_a_tolerance():
    assert numerical_rank(torch.zeros(3), rows=3, columns=3) == 0
    assert numerical_rank(torch.tensor([2.0, 0.3, 0.1]), rows=3, columns=3, tolerance=0.1) == 2


@given(rows=st.integers(2, 8), first=st.integers(1, 4), second=st.integers(1, 4), power=st.integers(-30, 30))
def test_a_basis_spans_its_blocks_whatever_their_lengths(rows, first, second, power):
    blocks = gaussian(rows, first), 10.0**power * gaussian(rows, second, seed=1)
    basis = orthonormal_basis(*blocks)
    assert basis.shape == (rows, min(rows, first + second))
    assert_orthonormal_columns(basis)
    for block in blocks:
        assert_close(basis @ (basis.T @ block), block, rtol=1e-12, atol=1e-13 * float(block.norm()))


def test_a_basis_counts_common_directions_once():
    e = torch.eye(5, dtype=torch.float64)
    tilted = e[:, 1:2] + 1e-9 * e[:, 4:]
    assert orthonormal_basis(e[:, :2], e[:, 1:3], torch.zeros(5, 1, dtype=torch.float64)).shape == (5, 3)
    assert orthonormal_basis(e[:, :2], tilted).shape == (5, 3)
    assert orthonormal_basis(e[:, :2], tilted, tolerance=1e-8).shape == (5, 2)
    assert orthonormal_basis(torch.zeros(5, 2, dtype=torch.float64)).shape == (5, 0)


# --- the rank that holds the energy


@pytest.mark.parametrize("energy", [0.0, 0.5, 0.9, 0.99, 0.999999, 1.0])
def test_the_rank_of_the_energy_is_the_smallest_that_holds_it(energy):
    values = torch.linalg.svdvals(gaussian(9, 7))
    shares = [float(values[:rank].square().sum() / values.square().sum()) for rank in range(8)]
    expected = next(rank for rank in range(8) if shares[rank] >= energy - 1e-15)
    assert rank_of_energy(values, energy) == expected


def test_the_rank_of_the_energy_at_the_edges():
    assert rank_of_energy(torch.zeros(3)) == 0
    assert rank_of_energy(torch.empty(0)) == 0
    assert (
        rank_of_energy(torch.tensor([1e-200, 1e-200], dtype=torch.float64), 0.99) == 2
    )  # whose squares are 0 in float64
    assert (
        rank_of_energy(torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64), 1.0) == 2
    )  # below the rounding of the sum
    with pytest.raises(ValueError, match="share must be at most 1"):
        rank_of_energy(torch.ones(3), 1.1)


# --- low_rank_factors


def test_certified_factors():
    generator = seeded()
    target = low_rank_target(300, 200, rank=7, generator=generator)
    left, values, right = low_rank_factors(target)
    assert len(values) == 7
    assert float((target - (left * values) @ right.mT).norm()) <= 300 * np.finfo(float).eps * float(target.norm())
    full = torch.randn(80, 90, generator=generator, dtype=torch.float64)
    assert len(low_rank_factors(full)[1]) == 80
    assert len(low_rank_factors(torch.zeros(30, 20, dtype=torch.float64))[1]) == 0


# --- principal_angles


@pytest.mark.parametrize(
    "angle", [0.0, 1e-15, 1e-12, 1e-9, 1e-4, 0.3, math.pi / 4, 1.0, math.pi / 2 - 1e-12, math.pi / 2]
)
def test_a_known_tilt_is_seen(angle):
    first, second = tilted_plane(angle)
    # Absolute: where an arccosine would be, its floor of 3e-8 would show.
    assert_close(principal_angles(first, second), torch.tensor([angle, 0.0], dtype=torch.float64), rtol=0, atol=4e-16)
    assert_close(principal_angles(second, first), torch.tensor([angle, 0.0], dtype=torch.float64), rtol=0, atol=4e-16)


@given(d=st.integers(2, 9), k=st.integers(1, 5), m=st.integers(1, 5))
def test_angles_are_scipys(d, k, m):
    first = random_orthogonal(d, min(d, k), generator=seeded(1))
    second = random_orthogonal(d, min(d, m), generator=seeded(2))
    expected = torch.from_numpy(scipy.linalg.subspace_angles(first.numpy(), second.numpy()))
    angles = principal_angles(first, second)
    # Where spaces meet and other angles exceed π/4, scipy takes an arccosine for the zero (it matches its list of
    # cosines with one in the opposite order), and that has a floor of some 3e-8.
    met = max(0, min(d, k) + min(d, m) - d)
    kept = len(angles) - met
    assert_close(angles[:kept], expected[:kept], rtol=1e-12, atol=1e-14)
    assert float(angles[kept:].sum()) <= 1e-14


def test_angles_know_no_basis_and_no_rotation():
    first, second = (random_orthogonal(7, 3, generator=seeded(seed)) for seed in (1, 2))
    inner, outer = (random_orthogonal(size, size, generator=seeded(3)) for size in (3, 7))
    angles = principal_angles(first, second)
    assert_close(principal_angles(first @ inner, second), angles, rtol=1e-13, atol=1e-14)
    assert_close(principal_angles(outer @ first, outer @ second), angles, rtol=1e-13, atol=1e-14)
    assert_close(principal_angles(first @ inner, first), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)


def test_angles_of_many_pairs_and_in_float64():
    first, second = (random_orthogonal(6, 2, runs=(3,), generator=seeded(seed)) for seed in (1, 2))
    one_by_one = torch.stack([principal_angles(*pair) for pair in zip(first, second, strict=True)])
    assert_close(principal_angles(first, second), one_by_one, rtol=1e-13, atol=0)
    assert principal_angles(first.float(), second.float()).dtype == torch.float64


def test_angles_of_an_empty_subspace_are_none():
    assert principal_angles(torch.zeros(5, 0), torch.eye(5)[:, :2]).shape == (0,)


def test_angles_need_one_space():
    with pytest.raises(ValueError, match="spaces of dimension 3 and 4"):
        principal_angles(torch.eye(3), torch.eye(4))


# --- whiten


@given(d=sides, more=st.integers(0, 5), scale=st.sampled_from([1.0, 2.5, 1e-3]))
def test_whitened_inputs_are_white_and_reached_by_the_preconditioner(d, more, scale):
    inputs = gaussian(d, d + more)
    white, transform = whiten(inputs, scale=scale)
    # A square Gaussian of this size has a condition number of up to 1e3.
    assert_close(white @ white.T, scale * torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-14 * scale * d)
    assert_close(transform @ inputs, white, rtol=1e-10, atol=1e-11)
    assert_close(transform, transform.T, rtol=1e-10, atol=1e-11)
    assert float(torch.linalg.eigvalsh(transform).min()) > 0


def test_white_inputs_stay_as_they_are():
    white = random_orthogonal(3, 8, generator=seeded())
    again, transform = whiten(white)
    assert_close(again, white, rtol=0, atol=1e-14)
    assert_close(transform, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_whitening_does_not_square_the_condition_number():
    inputs = torch.diag(torch.tensor([1.0, 1e-10], dtype=torch.float64)) @ gaussian(2, 9)
    white, _ = whiten(inputs)
    assert_close(white @ white.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-14)


def test_whitening_many_at_once():
    inputs = gaussian(3, 4, 9)
    white, transforms = whiten(inputs)
    for one, expected, transform in zip(inputs, white, transforms, strict=True):
        assert_close(whiten(one)[0], expected, rtol=1e-12, atol=1e-13)
        assert_close(transform @ one, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "inputs",
    [
        gaussian(5, 3),
        gaussian(3, 1) @ gaussian(1, 8),
        torch.stack([gaussian(3, 8), gaussian(3, 1) @ gaussian(1, 8)]),
        pytest.param(
            torch.zeros(3, 5),
        ),
    ],
)
def test_inputs_without_full_rank_are_refused(inputs):
    with pytest.raises(ValueError, match=r"have not full row rank .* drop dependent features"):
        whiten(inputs)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf])
def test_whitening_to_no_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be"):
        whiten(gaussian(2, 5), scale=scale)
