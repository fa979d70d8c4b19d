"""Compressed networks: frames that theory names, forms that train like the wide network, refusals."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.linalg import leading_singular_vectors, principal_angles, random_orthogonal
from lowdyn.networks import normal
from lowdyn.problems import Completion, Factorization, low_rank_target
from lowdyn.recovery import compress_network, compressed_factors, gradient_start, spectral_start
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def wide(size=30, rank=3, depth=3, scale=0.1, *, seed=0, **options):
    generator = seeded(seed)
    problem = Factorization(low_rank_target(size, size, rank=rank, generator=generator), **options)
    return DeepLinearNetwork((size,) * (depth + 1), scale, generator=generator), problem


def masked(rows, columns, *, fraction=0.5, rank=2, seed=0):
    generator = seeded(seed)
    target = low_rank_target(rows, columns, rank=rank, generator=generator)
    return target, torch.rand(rows, columns, generator=generator) < fraction


def assert_orthonormal(basis):
    torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]).to(basis), rtol=0, atol=1e-13)


# --- leading singular vectors


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (300, 260), (260, 300)])
@pytest.mark.parametrize("form", ["tensor", "sparse"])
def test_leading_singular_vectors_are_those_of_the_svd(shape, form):
    matrix = gaussian(*shape)
    given = matrix if form == "tensor" else sparse.csr_array(matrix.numpy())
    left, values, right = leading_singular_vectors(given, 5)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix)[:5], rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix @ right, left * values, rtol=0, atol=1e-11)
    assert_orthonormal(left)
    assert_orthonormal(right)
    assert torch.equal(leading_singular_vectors(given, 5)[2], right)


def graded(rows, columns, values):
    """A matrix with these singular values and no others."""
    generator = seeded()
    left, right = (random_orthogonal(side, len(values), generator=generator) for side in (rows, columns))
    return left * torch.tensor(values, dtype=torch.float64) @ right.mT


@pytest.mark.parametrize("shape", [(9_000, 150), (150, 9_000), (6_000, 300)])  # none of them small
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.coo_matrix])
def test_a_thin_sparse_matrix_taken_by_rows_keeps_small_values(shape, kind):
    """A Gram matrix, and Lanczos on it, has lost those below 1e-8 of the largest."""
    expected = [3.0, 1.0, 1e-3, 1e-6, 1e-9, 1e-11]
    count = 80 if min(shape) == 300 else 6  # rank 6: the others are zero
    matrix = graded(*shape, expected)
    left, values, right = leading_singular_vectors(kind(matrix.numpy()), count)
    torch.testing.assert_close(values[:6], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert float(values[6:].sum()) < 1e-13
    torch.testing.assert_close(left * values @ right.mT, matrix, rtol=0, atol=1e-14)
    assert_orthonormal(left)
    assert_orthonormal(right)
    again = leading_singular_vectors(kind(matrix.numpy()), count)
    assert all(torch.equal(one, other) for one, other in zip((left, values, right), again, strict=True))


@pytest.mark.parametrize("count", [1, 40])
def test_a_large_operator_is_as_its_matrix(count):
    matrix = gaussian(9_000, 150)
    left, values, right = leading_singular_vectors(aslinearoperator(matrix.numpy()), count)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix)[:count], rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix @ right, left * values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(9_000, 150), (150, 9_000), (300, 400), (5_000, 4_000), (30, 20)])
def test_a_matrix_of_zeros_has_orthonormal_vectors(shape):
    left, values, right = leading_singular_vectors(sparse.csr_array(([0.0], ([0], [0])), shape=shape), 3)
    assert values.tolist() == [0.0, 0.0, 0.0]
    assert (left.shape, right.shape) == ((shape[0], 3), (shape[1], 3))
    assert_orthonormal(left)
    assert_orthonormal(right)


@pytest.mark.parametrize("count", [0, 4])
def test_leading_singular_vectors_refuse_a_count_that_is_not_there(count):
    with pytest.raises(ValueError, match=r"1 … 3 leading singular vectors, not"):
        leading_singular_vectors(torch.eye(3), count)


# --- frames


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_gradient_start_finds_the_subspaces_of_the_law_of_parsimony(depth):
    # Theory §3: for factorization V and U span B_0 and B_L of the exact reduction.
    network, problem = wide(depth=depth)
    left, right = gradient_start(network, problem, 3)
    active = reduce_network(network, problem).active
    assert float(principal_angles(right, active[0])[0]) < 1e-11
    assert float(principal_angles(left, active[-1])[0]) < 1e-11
    assert_orthonormal(left)
    assert_orthonormal(right)
    torch.testing.assert_close(left, network.end_to_end() @ right / 0.1**depth, rtol=0, atol=1e-12)


def test_the_spectral_start_is_the_svd_of_the_surrogate():
    target, mask = masked(30, 20)
    left, right = spectral_start(None, Completion(target, mask), 2)
    surrogate = torch.where(mask, target, 0) / mask.to(target).mean()
    expected = torch.linalg.svd(surrogate)
    assert float(principal_angles(left, expected.U[:, :4])[0]) < 1e-12
    assert float(principal_angles(right, expected.Vh[:4].mT)[0]) < 1e-12


@pytest.mark.parametrize("start", [gradient_start, spectral_start])
def test_a_sparse_problem_gives_the_frames_of_the_dense_one(start):
    target, mask = masked(30, 20)
    network = DeepLinearNetwork((20, 30, 30), 0.1, generator=seeded(1))
    stored = sparse.coo_array((target[mask].numpy(), tuple(np.argwhere(mask.numpy()).T)), shape=target.shape)
    dense, thin = (start(network, one, 2) for one in (Completion(target, mask), Completion.from_sparse(stored)))
    for one, other in zip(dense, thin, strict=True):
        assert float(principal_angles(one, other)[0]) < 1e-10


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (30, 30)])
def test_the_gradient_start_of_a_narrow_network_is_that_of_its_definition(shape):
    target, mask = masked(*shape)
    network = DeepLinearNetwork.from_weights([gaussian(5, shape[1]), gaussian(shape[0], 5, seed=1)])
    problem = Completion(target, mask)
    first, above = network.weights
    gradient = above.mT @ problem.gradient_at(network.weights)
    expected = [torch.linalg.svd(one).Vh[:2].mT for one in (gradient, gradient.mT @ first)]
    right = gradient_start(network, problem, 2)[1]
    assert float(principal_angles(right, torch.linalg.qr(torch.cat(expected, dim=1))[0])[0]) < 1e-12


def test_a_start_that_is_not_orthogonal_still_gives_orthonormal_frames():
    target, mask = masked(30, 20)
    network = DeepLinearNetwork((20, 40, 30), 0.1, start=normal, generator=seeded(1))
    for frame in gradient_start(network, Completion(target, mask), 3):
        assert_orthonormal(frame)


# --- networks


@pytest.mark.parametrize(("outer", "sizes"), [("orthonormal", (30, 6, 6, 6, 6, 30)), ("merged", (30, 6, 6, 30))])
@pytest.mark.parametrize("start", [gradient_start, spectral_start])
def test_a_compressed_network_has_the_promised_factors(start, outer, sizes):
    network, problem = wide()
    for scale, weight in enumerate(network.weights, start=1):
        weight.mul_(scale)  # every layer its own
    thin = compress_network(network, problem, 3, start=start, outer=outer)
    left, right = start(network, problem, 3)
    product = 0.1 * 0.2 * 0.3 * left @ right.mT
    assert thin.sizes == sizes
    torch.testing.assert_close(thin.end_to_end(), product, rtol=0, atol=1e-15)
    scales = [float(torch.linalg.svdvals(weight)[0]) for weight in thin.weights]
    expected = [0.1, 0.2, 0.3] if outer == "merged" else [1.0, 0.1, 0.2, 0.3, 1.0]
    assert scales == pytest.approx(expected, rel=1e-13)


def test_it_follows_the_wide_network_and_its_frozen_frames_do_not_move():
    network, problem = wide(reduction="sum", scale=0.05)
    thin = compress_network(network, problem, 3)
    frames = thin.weights[0].clone(), thin.weights[-1].clone()
    # A rate of 0.4 of the largest stable one.
    gradient_descent(network, problem, Descent(lr=0.01), 3000, every=3000)
    gradient_descent(thin, problem, Descent(lr=0.01, factor_rates=(0.0, 1.0, 1.0, 1.0, 0.0)), 3000, every=3000)
    assert torch.equal(thin.weights[0], frames[0])
    assert torch.equal(thin.weights[-1], frames[1])
    apart = float((thin.end_to_end() - network.end_to_end()).norm())
    assert float(problem.loss(network.end_to_end())) < 1e-6
    assert apart <= 2 * 0.05**3 * (30 - 6) ** 0.5  # claim C10


def test_float32_stays_float32():
    network, problem = wide()
    single = DeepLinearNetwork.from_weights(weight.float() for weight in network.weights)
    assert {weight.dtype for weight in compress_network(single, problem, 2).weights} == {torch.float32}


def test_full_width_is_no_compression():
    network, problem = wide(size=6)
    assert compress_network(network, problem, 3).sizes == (6,) * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 16}, "rank 16 needs frames of 32 directions, a 30 x 30 matrix has 30"),
        ({"outer": "both"}, "outer must be one of 'orthonormal', 'merged'"),
        ({"problem": Factorization(torch.ones(4, 30))}, "the network maps 30 -> 30, the problem 30 -> 4"),
    ],
)
def test_refusals(change, message):
    network, problem = wide()
    given = {"network": network, "problem": problem, "rank": 3, **change}
    with pytest.raises(ValueError, match=message):
        compress_network(given.pop("network"), given.pop("problem"), given.pop("rank"), **given)


def test_refuses_runs_and_frames_that_differ():
    network = DeepLinearNetwork((9, 9, 9), generator=seeded(), runs=2)
    with pytest.raises(ValueError, match=r"take network.run\(i\)"):
        compress_network(network, Factorization(torch.eye(9)), 1)
    with pytest.raises(ValueError, match=r"left \(4, 2\) and right \(4, 3\)"):
        compressed_factors(torch.ones(4, 2), torch.ones(4, 3), (1.0, 1.0))
    with pytest.raises(ValueError, match="at least two init scales, got 1"):
        compressed_factors(torch.ones(4, 2), torch.ones(4, 2), (1.0,), outer="merged")
