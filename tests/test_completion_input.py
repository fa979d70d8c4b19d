"""What completion reads and what it is: sparse formats, comparisons, and input that it refuses."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.dynamics import invariant_frames, stable_lr
from lowdyn.networks import MLP
from lowdyn.problems import Completion, Factorization, low_rank_target
from lowdyn.recovery import gradient_start, spectral_start
from tests.cases import gaussian, seeded
from tests.observed import TOLERANCE, both_forms, seen, stored

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- sparse input


@pytest.mark.parametrize(
    "kind",
    [
        sparse.coo_array,
        sparse.csr_array,
        sparse.csc_array,
        sparse.lil_array,
        sparse.dok_array,
        sparse.csr_matrix,
        sparse.coo_matrix,
    ],
)
def test_every_sparse_format_is_the_same_problem(kind):
    target, mask = gaussian(6, 8), seen(6, 8)
    problem = Completion.from_sparse(stored(target, mask, kind))
    assert problem.shape == (6, 8)
    assert problem.same_as(Completion(target, mask))
    assert problem.dense().same_as(Completion(target, mask))


def test_a_stored_zero_is_observed():
    matrix = sparse.coo_array(([3, 0, 0], ([0, 1, 2], [1, 1, 0])), shape=(3, 2))
    for kind in (matrix, matrix.tocsr(), matrix.tocsc()):
        problem = Completion.from_sparse(kind)
        assert (problem.count, problem.dtype) == (3, torch.float64)
        assert problem.dense().mask.tolist() == [[False, True], [False, True], [True, False]]


def test_the_given_matrix_stays_as_it_is():
    matrix = sparse.csr_array((np.array([1.0, 2.0]), np.array([3, 0]), np.array([0, 2])), shape=(1, 4))
    assert not matrix.has_sorted_indices
    Completion.from_sparse(matrix)
    assert matrix.indices.tolist() == [3, 0]


def test_nothing_of_the_full_shape_is_formed():
    m, n = 300_000, 200_000  # 480 GB
    rng = np.random.default_rng(0)
    places = (rng.permutation(m)[:1000], rng.permutation(n)[:1000])
    problem = Completion.from_sparse(sparse.coo_array((rng.standard_normal(1000), places), shape=(m, n)))
    weights = [torch.ones(1, n, dtype=torch.float64), torch.ones(m, 1, dtype=torch.float64)]
    network = DeepLinearNetwork.from_weights(weights)
    losses = gradient_descent(network, problem, Descent(lr=10.0), 5)["loss"].values
    assert losses[-1] < losses[0]
    assert problem.gradient_at(weights).nnz == problem.surrogate().nnz == 1000


@pytest.mark.parametrize("shape", [(100_000, 150), (150, 100_000)])
def test_no_start_or_rate_of_a_thin_matrix_takes_its_full_shape(shape):
    rng = np.random.default_rng(0)
    places = rng.choice(shape[0] * shape[1], 50_000, replace=False)
    entries = sparse.coo_array((rng.standard_normal(50_000), np.divmod(places, shape[1])), shape=shape)
    problem = Completion.from_sparse(entries)
    weights = [0.1 * gaussian(4, shape[1]), 0.1 * gaussian(shape[0], 4, seed=1)]
    network = DeepLinearNetwork.from_weights(weights)
    stable_lr(problem, 2)  # what is imported and compiled is none of it
    problem.gradient_at(weights)
    peaks = []
    for made in (
        lambda: stable_lr(problem, 3),
        lambda: spectral_start(network, problem, 1),
        lambda: gradient_start(network, problem, 1),
    ):
        tracemalloc.start()
        try:
            made()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert max(peaks) < 8 * shape[0] * shape[1] / 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_and_surrogate_are_sparse_for_sparse_input(dtype):
    dense, listed = both_forms(dtype=dtype)
    weights = [gaussian(4, 9, dtype=dtype), gaussian(3, 4, dtype=dtype), gaussian(7, 3, dtype=dtype)]
    for found, expected in (
        (listed.gradient_at(weights), dense.gradient_at(weights)),
        (listed.surrogate(), dense.surrogate()),
    ):
        assert isinstance(found, sparse.csr_array)
        assert_close(torch.from_numpy(found.toarray()), expected, **TOLERANCE[dtype])
    assert_close(dense.surrogate() * dense.observed_fraction, dense.targets)
    assert stable_lr(listed, 3) == pytest.approx(stable_lr(dense, 3), rel=1e-6)


def test_the_surrogate_is_the_target_on_average():
    target, runs = gaussian(4, 5), 4000
    problem = Completion(target, torch.rand(runs, 4, 5, generator=seeded(5)) < 0.7)
    assert_close(problem.surrogate().mean(dim=0), target, rtol=0, atol=0.15)


# --- what it is, and what it is not


def test_precision_comparison_and_full_form():
    dense, listed = both_forms()
    for problem in (dense, listed):
        single = problem.to(torch.float32)
        assert (single.dtype, problem.dtype) == (torch.float32, torch.float64)
        assert single.to(torch.float32) is single
        assert problem.same_as(problem.to(torch.float64))
        assert not problem.same_as(Completion(dense.targets + 1.0 * dense.mask, dense.mask))
        assert not problem.same_as(both_forms(reduction="sum")[0])
        assert not problem.same_as(Factorization(dense.targets))
        assert not Factorization(dense.targets).same_as(problem)
    assert listed.same_as(dense)
    assert dense.dense() is dense
    assert dense.select(torch.tensor([0])) is dense


def test_the_exact_theory_of_the_whole_product_is_refused():
    network = DeepLinearNetwork((24, 24, 24), 0.1, generator=seeded())
    target = low_rank_target(24, 24, rank=2, generator=seeded())
    problem = Completion(target, seen(24, 24))
    with pytest.raises(TypeError, match="not Completion: a masked or measured objective"):
        reduce_network(network, problem)
    with pytest.raises(TypeError, match="not Completion: a masked or measured objective"):
        invariant_frames(network, problem)
    small = reduce_network(network, Factorization(target))
    with pytest.raises(ValueError, match="another problem"):
        gradient_descent(small, problem, Descent(0.1), 1)


def test_a_sparse_problem_says_what_it_cannot():
    dense, listed = both_forms(6, 6)
    network = DeepLinearNetwork((6, 6), generator=seeded())
    with pytest.raises(ValueError, match=r"dense\(\)"):
        gradient_descent(network, listed, Descent(0.1), 1)
    with pytest.raises(ValueError, match=r"dense\(\)"):
        listed.loss(torch.zeros(6, 6))
    with pytest.raises(ValueError, match=r"dense\(\)"):
        listed.gradient_at([torch.zeros(6, 6)])
    with pytest.raises(ValueError, match=r"dense\(\)"):
        listed.to(torch.float64, "meta")
    with pytest.raises(ValueError, match="runs"):
        _ = Completion(gaussian(2, 3, 3), seen(2, 3, 3)).entries
    gradient_descent(MLP((6, 5, 6), generator=seeded(), bias=False, dtype=torch.float64), dense, Descent(0.1), 2)


SQUARE = torch.eye(3)


@pytest.mark.parametrize(
    ("target", "mask", "error", "message"),
    [
        (SQUARE, SQUARE, TypeError, "dtype bool, got torch.float32"),
        (SQUARE, np.eye(3), TypeError, "dtype bool"),
        (SQUARE, torch.ones(3, 2, dtype=torch.bool), ValueError, r"\(3, 3\) and mask \(3, 2\)"),
        (SQUARE, torch.ones(3, dtype=torch.bool), ValueError, "rows, columns"),
        (gaussian(2, 3, 3), torch.ones(4, 3, 3, dtype=torch.bool), ValueError, "same sizes"),
        (SQUARE, torch.zeros(3, 3, dtype=torch.bool), ValueError, "no entry as observed"),
        (
            gaussian(2, 3, 3),
            torch.tensor([True, False])[:, None, None].expand(2, 3, 3),
            ValueError,
            "some run",
        ),
        (SQUARE * float("nan"), torch.ones(3, 3, dtype=torch.bool), ValueError, "NaN or infinite"),
        (SQUARE / 0.0, torch.eye(3, dtype=torch.bool), ValueError, "on its observed entries"),
        (gaussian(2, 2, 3, 3), torch.ones(3, 3, dtype=torch.bool), ValueError, "target must be"),
        (torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), ValueError, "empty"),
        ("ratings", torch.ones(3, 3, dtype=torch.bool), TypeError, "matrix of numbers"),
    ],
)
def test_what_is_no_dense_completion_is_refused(target, mask, error, message):
    with pytest.raises(error, match=message):
        Completion(target, mask)


def coo(values, rows, columns, shape=(3, 4)):
    """A matrix with indices that scipy itself would refuse."""
    matrix = sparse.coo_array((np.array(values), (np.zeros(len(rows), int), np.zeros(len(rows), int))), shape=shape)
    matrix.coords = (np.array(rows), np.array(columns))
    return matrix


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3), TypeError, "scipy sparse matrix, got ndarray"),
        (sparse.coo_array((3, 4)), ValueError, "nothing is observed"),
        (
            coo([1.0, 2.0, 5.0, 7.0], [0, 1, 1, 0], [2, 3, 3, 2]),
            ValueError,
            r"row 1, column 3 is stored twice \(2.0 and 5.0",
        ),
        (
            sparse.csr_array((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3)),
            ValueError,
            r"row 0, column 2 is stored twice \(1.0 and 4.0",
        ),
        (coo([1.0, 2.0], [0, 3], [1, 1]), ValueError, r"row index 3 \(entry 1\) is outside 0 … 2"),
        (coo([1.0, 2.0], [0, 1], [-1, 1]), ValueError, r"column index -1 \(entry 0\)"),
        (
            sparse.csr_array((np.array([1.0]), np.array([9]), np.array([0, 1])), shape=(1, 3)),
            ValueError,
            "column index 9",
        ),
        (coo([1.0, float("nan")], [0, 1], [1, 3]), ValueError, "row 1, column 3 is nan"),
        (coo([1.0, float("inf")], [0, 1], [1, 3]), ValueError, "row 1, column 3 is inf"),
        (coo([1j], [0], [0]), TypeError, "real numbers, got complex128"),
        (sparse.coo_array(([1.0], ([0], [0])), shape=(2**31, 2)), ValueError, "sides up to"),
    ],
)
def test_what_is_no_sparse_completion_is_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        Completion.from_sparse(matrix)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'mean', 'sum'"):
        Completion(SQUARE, SQUARE.bool(), "median")
    with pytest.raises(ValueError, match="'mean', 'sum'"):
        Completion.from_sparse(sparse.eye_array(3), "all")
