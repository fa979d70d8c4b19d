"""Completion's loss and gradients: those of autograd over observed entries, by every way through the entries."""

import numba
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.dynamics import stable_lr
from lowdyn.problems import Completion, Factorization
from lowdyn.problems.observed import ObservedProducts
from tests.cases import gaussian, seeded
from tests.observed import TOLERANCE, both_forms, seen, stored

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])


@reductions
def test_loss_and_gradient_are_over_observed_entries_alone(reduction):
    target, mask = gaussian(4, 6), seen(4, 6)
    unknown = torch.where(mask, target, float("nan"))
    matrix = gaussian(4, 6, seed=2).requires_grad_()
    errors = (matrix - target)[mask].square()
    expected = errors.mean() / 2 if reduction == "mean" else errors.sum() / 2
    problem = Completion(unknown, mask, reduction)
    assert_close(problem.loss(matrix), expected, rtol=1e-14, atol=0)
    assert_close(problem.gradient(matrix.detach()), torch.autograd.grad(expected, matrix)[0], rtol=1e-13, atol=0)
    assert problem.observed_fraction == pytest.approx(float(mask.double().mean()))
    assert problem.count == int(mask.sum())


@reductions
def test_a_full_mask_is_factorization(reduction):
    target, matrix = gaussian(5, 6), gaussian(5, 6, seed=1)
    problem, whole = Completion(target, torch.ones(5, 6, dtype=torch.bool), reduction), Factorization(target, reduction)
    assert torch.equal(problem.gradient(matrix), whole.gradient(matrix))
    assert_close(problem.loss(matrix), whole.loss(matrix), rtol=1e-15, atol=0)
    assert stable_lr(problem, 3) == pytest.approx(stable_lr(whole, 3), rel=1e-12)
    assert torch.equal(problem.surrogate(), whole.surrogate())
    wide, other = (DeepLinearNetwork((6, 5, 5), 0.5, generator=seeded(3)) for _ in range(2))
    curves = [gradient_descent(*pair, Descent(0.1), 50) for pair in ((wide, problem), (other, whole))]
    assert_close(curves[0]["loss"].values, curves[1]["loss"].values, rtol=1e-14, atol=0)


sizes = st.integers(1, 14)


@given(
    m=sizes,
    n=sizes,
    rank=st.sampled_from([1, 3, 4, 6, 8]),
    fraction=st.floats(0, 1),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 99),
)
def test_products_on_observed_entries_are_autograds(m, n, rank, fraction, dtype, seed):
    dense, listed = both_forms(m, n, fraction=fraction, dtype=dtype, seed=seed)
    left, right = gaussian(m, rank, seed=seed + 2, dtype=dtype), gaussian(rank, n, seed=seed + 3, dtype=dtype)
    left.requires_grad_()
    right.requires_grad_()
    loss = dense.loss(left @ right)
    expected = (loss.detach(), *torch.autograd.grad(loss, (left, right)))
    left, right = left.detach(), right.detach()
    for problem in (dense, listed):
        for one, other in zip(problem.factor_gradients(left, right), expected, strict=True):
            assert_close(one, other, **TOLERANCE[dtype])
    assert_close(
        torch.from_numpy(listed.gradient_at([right, left]).toarray()), dense.gradient(left @ right), **TOLERANCE[dtype]
    )
    # One side alone takes another way through the entries.
    products = ObservedProducts(listed.entries, rank)
    products.left.copy_(left)
    products.right.copy_(right)
    for side in ("left", "right"):
        half_squares = products.compute(**{"left": False, "right": False, side: True})
        assert_close(half_squares * listed.scale, expected[0].item(), **TOLERANCE[dtype])
    assert_close(listed.scale * products.left_gradient, expected[1], **TOLERANCE[dtype])
    assert_close(listed.scale * products.right_gradient, expected[2], **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [127, 129, 450])
def test_wide_factors_take_another_way_to_the_same_products(rank, dtype):
    dense, listed = both_forms(20, 30, fraction=0.4, dtype=dtype, seed=0)
    left, right = gaussian(20, rank, seed=2, dtype=dtype) / rank, gaussian(rank, 30, seed=3, dtype=dtype)
    expected = dense.gradient(left @ right)
    loss, by_left, by_right = listed.factor_gradients(left, right)
    assert_close(loss, dense.loss(left @ right), **TOLERANCE[dtype])
    assert_close(by_left, expected @ right.mT, **TOLERANCE[dtype])
    assert_close(by_right, left.mT @ expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(900, 11), (11, 900)])
def test_threads_change_no_bit(shape):
    torch_threads = torch.get_num_threads()
    problem = Completion.from_sparse(stored(gaussian(*shape), seen(*shape, fraction=0.9)))
    results, before = [], numba.get_num_threads()
    for parallel, threads in ((False, 1), (True, 1), (True, before)):
        products = ObservedProducts(problem.entries, 5)
        products.parallel = parallel
        products.left.copy_(gaussian(shape[0], 5, seed=1))
        products.right.copy_(gaussian(5, shape[1], seed=2))
        numba.set_num_threads(threads)  # which may set torch's too, where both share one OpenMP
        torch.set_num_threads(torch_threads)
        loss = products.compute()
        results.append((loss, products.left_gradient, products.right_gradient))
        assert len(next(iter(products.plans.values())).rooms) > 1  # there is something to share
    left, right = products.left, products.right
    residual = problem.dense().residual(left @ right)
    expected = (float(residual.square().sum()) / 2, residual @ right.mT, left.mT @ residual)
    for found, exact in zip(results[0], expected, strict=True):
        assert_close(found, exact, rtol=1e-11, atol=1e-11)
    for other in results[1:]:
        assert other[0] == results[0][0]
        assert torch.equal(other[1], results[0][1])
        assert torch.equal(other[2], results[0][2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(700, 650), (650, 1300)])
def test_full_rows_are_passed_in_tiles_to_the_same_products(shape, dtype):
    rank, rows = 9, max(shape)
    target = gaussian(*shape, dtype=dtype)
    mask = seen(*shape, fraction=0.4)
    mask[5], mask[:, 7], mask[3] = False, False, True  # a row and a column without entries, and a full row
    problem = Completion.from_sparse(stored(target, mask))
    left, right = gaussian(shape[0], rank, seed=1, dtype=dtype), gaussian(rank, shape[1], seed=2, dtype=dtype)
    residual = problem.dense().residual(left @ right)
    expected = (float(residual.square().sum()) / 2, residual @ right.mT, left.mT @ residual)
    # In single precision, 1e-7 of what is summed: some five hundred numbers near 3, which may cancel.
    close = TOLERANCE[dtype] if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-4}
    bits = []
    for parallel in (False, True):
        products = ObservedProducts(problem.entries, rank)
        products.parallel = parallel
        products.left.copy_(left)
        products.right.copy_(right)
        found = (products.compute(), products.left_gradient.clone(), products.right_gradient.clone())
        starts = products.plans[shape[1] > shape[0], True].pattern[1]
        assert len(starts) > 2 * rows  # more than one piece of every row
        for one, exact in zip(found, expected, strict=True):
            assert_close(one, exact, **close)
        # Another way through the entries, so another order of the sums.
        products.compute(right=False)
        assert_close(products.left_gradient, found[1], **close)
        products.compute(left=False)
        assert_close(products.right_gradient, found[2], **close)
        assert products.compute(left=False, right=False) == pytest.approx(found[0], rel=close["rtol"])
        bits.append((found[0], found[1].numpy().tobytes(), found[2].numpy().tobytes()))
    assert bits[0] == bits[1]


def test_the_entries_of_a_tile_are_kept_for_the_next_descent():
    problem = Completion.from_sparse(stored(gaussian(500, 500), seen(500, 500)))
    one, two = (ObservedProducts(problem.entries, 9) for _ in range(2))
    one.compute()
    two.compute()
    assert one.plans[False, True].pattern[2] is two.plans[False, True].pattern[2]
    assert len(problem.entries.tiled) == 1


def test_large_residuals_and_nan_are_not_hidden():
    problem = Completion.from_sparse(stored(gaussian(6, 6), seen(6, 6)))
    left = gaussian(6, 2)
    left[0, 0] = float("nan")
    loss, of_left, of_right = problem.factor_gradients(left, gaussian(2, 6))
    assert not torch.isfinite(loss)
    assert not torch.isfinite(of_left).all()
    assert not torch.isfinite(of_right).all()
