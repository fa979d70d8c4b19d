from itertools import pairwise

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent, reduce_network
from lowdyn.dynamics import DivergenceError, invariant_frames, stable_lr
from lowdyn.dynamics.chain import Chain, Part
from lowdyn.dynamics.split import splits
from lowdyn.networks import MLP, narrowest_split, normal, product_of
from lowdyn.problems import Completion, Factorization, low_rank_target
from lowdyn.problems.observed import ObservedProducts
from tests.cases import RULES, gaussian, seeded
from tests.oracles import descend_by_autograd

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])
TOLERANCE = {torch.float64: {"rtol": 1e-11, "atol": 1e-12}, torch.float32: {"rtol": 1e-3, "atol": 1e-4}}


def seen(*shape, fraction=0.5, seed=5):
    """A mask with at least one entry."""
    mask = torch.rand(*shape, generator=seeded(seed)) < fraction
    mask[..., 0, 0] = True
    return mask


def stored(target, mask, kind=sparse.coo_array):
    return kind(sparse.coo_array((target[mask].numpy(), np.nonzero(mask.numpy())), shape=tuple(target.shape)))


def both_forms(m=7, n=9, *, fraction=0.5, reduction="mean", dtype=torch.float64, seed=0):
    target, mask = gaussian(m, n, seed=seed, dtype=dtype), seen(m, n, fraction=fraction, seed=seed + 1)
    return Completion(target, mask, reduction), Completion.from_sparse(stored(target, mask), reduction)


# --- the objective


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


# --- descent


def sgd(network, problem, descent, steps):
    dense = problem.dense()
    identity = torch.eye(problem.shape[1], dtype=dense.dtype)
    return descend_by_autograd(
        network.weights, identity, dense.targets, descent, steps, scale=dense.scale, mask=dense.mask
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sizes", [(9, 2, 8), (8, 3, 2, 3, 9), (8, 2, 2, 2, 8), (6, 12, 9), (3, 4, 8)], ids=str)
def test_descent_on_observed_entries_is_sgd(sizes, rule):
    depth = len(sizes) - 1
    _, problem = both_forms(sizes[-1], sizes[0])
    network = DeepLinearNetwork(sizes, 0.7, generator=seeded(4))
    assert splits(Part(network.weights, problem))
    weights, losses = sgd(network, problem, rule(depth), 20)
    trajectory = gradient_descent(network, problem, rule(depth), 20)
    assert_close(trajectory["loss"].values, np.array(losses), rtol=1e-10, atol=1e-14)
    for one, other in zip(network.weights, weights, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(12, 2, 2, 10), (10, 7, 12), (8, 9)], ids=str)
def test_dense_and_sparse_input_train_alike(sizes):
    target, mask = gaussian(sizes[-1], sizes[0]), seen(sizes[-1], sizes[0])
    dense, listed = Completion(target, mask), Completion.from_sparse(stored(target, mask))
    networks = [DeepLinearNetwork(sizes, 0.5, start=normal, generator=seeded()) for _ in range(3)]
    problems = [dense, listed if len(sizes) > 2 else listed.dense(), dense]
    rule = Descent(0.3, momentum=0.5)
    for network, problem in zip(networks[:2], problems[:2], strict=True):
        gradient_descent(network, problem, rule, 30)
    gradient_descent(networks[2], dense, rule, 30, every=7, record=Spectra())  # looks change nothing
    for one, two, three in zip(*(network.weights for network in networks), strict=True):
        assert_close(one, two, rtol=1e-11, atol=1e-13)
        assert torch.equal(one, three)


def test_a_run_goes_on_where_it_stopped_and_is_seen_where_it_is():
    _, problem = both_forms(12, 10)
    once, twice = (DeepLinearNetwork((10, 2, 12), 0.5, generator=seeded()) for _ in range(2))
    gradient_descent(once, problem, Descent(0.5), 40)
    for _ in range(2):
        trajectory = gradient_descent(twice, problem, Descent(0.5), 20)
        assert trajectory["loss"][-1] == pytest.approx(float(problem.dense().loss(twice.end_to_end())), rel=1e-13)
    assert all(torch.equal(one, two) for one, two in zip(once.weights, twice.weights, strict=True))


def test_frozen_outer_factors_stay_to_the_bit_and_cost_no_gradient():
    _, problem = both_forms(12, 12)
    network = DeepLinearNetwork((12, 2, 2, 2, 12), 0.5, generator=seeded())
    before = [weight.clone() for weight in network.weights]
    problem.entries.__dict__["by_column"] = None  # that of the first factor would need it
    descent = Descent(0.5, momentum=0.9, weight_decay=0.1, factor_rates=(0, 1, 1, 0))
    gradient_descent(network, problem, descent, 10)
    moved = [not torch.equal(one, two) for one, two in zip(before, network.weights, strict=True)]
    assert moved == [False, True, True, False]


@pytest.mark.parametrize("sizes", [(12, 2, 2, 12), (12, 12, 12, 12)], ids=["split", "matrices"])
@pytest.mark.parametrize(("rates", "trained"), [((0, 1, 0), 1), ((0, 0, 1), 1), ((1, 0, 0), 1), ((0, 0, 0), 0)])
def test_only_factors_that_train_are_updated(monkeypatch, sizes, rates, trained):
    updated, update = [], Chain._update
    monkeypatch.setattr(Chain, "_update", lambda self, *given: updated.append(update(self, *given)))
    network = DeepLinearNetwork(sizes, 0.5, generator=seeded())
    before = [weight.clone() for weight in network.weights]
    problem = both_forms(12, 12)[sizes[1] < 12]
    gradient_descent(network, problem, Descent(0.5, factor_rates=rates), 5)
    assert len(updated) == 5 * trained
    for weight, start, rate in zip(network.weights, before, rates, strict=True):
        assert torch.equal(weight, start) == (rate == 0)


def test_rows_and_columns_without_entries_keep_their_factors():
    target, mask = gaussian(9, 10), seen(9, 10)
    mask[3], mask[:, 4] = False, False
    for problem in (Completion(target, mask), Completion.from_sparse(stored(target, mask))):
        network = DeepLinearNetwork((10, 2, 9), 0.5, generator=seeded())
        first, last = (weight.clone() for weight in network.weights)
        gradient_descent(network, problem, Descent(0.5), 10)
        assert torch.equal(network.weights[0][:, 4], first[:, 4])
        assert torch.equal(network.weights[1][3], last[3])
        assert not torch.equal(network.weights[1][2], last[2])


@given(shared=st.sampled_from(["target", "mask", "nothing"]), reduction=st.sampled_from(["mean", "sum"]))
def test_problems_side_by_side_are_the_single_ones(shared, reduction):
    runs, m, n = 3, 8, 9
    target = gaussian(m, n) if shared == "target" else gaussian(runs, m, n)
    mask = seen(m, n) if shared == "mask" else seen(runs, m, n)
    problem = Completion(target, mask, reduction)
    network = DeepLinearNetwork((n, 2, m), 0.5, generator=seeded(), runs=runs)
    single = [
        Completion(target if target.ndim == 2 else target[i], mask if mask.ndim == 2 else mask[i], reduction)
        for i in range(runs)
    ]
    alone = [network.run(i) for i in range(runs)]
    rates = [0.02, 0.01, 0.03]
    assert problem.runs == runs
    trajectory = gradient_descent(network, problem, Descent(rates), 20)
    for index, (one, own) in enumerate(zip(alone, single, strict=True)):
        expected = gradient_descent(one, own, Descent(rates[index]), 20)
        assert_close(trajectory["loss"].values[:, index], expected["loss"].values, rtol=1e-11, atol=0)
        for both, weight in zip(network.weights, one.weights, strict=True):
            assert_close(both[index], weight, rtol=1e-11, atol=1e-13)
        chosen = problem.select(torch.tensor([index]))
        assert_close(chosen.loss(one.end_to_end()[None])[0], own.loss(one.end_to_end()), rtol=1e-13, atol=0)
        assert_close(chosen.gradient(one.end_to_end()[None])[0], own.gradient(one.end_to_end()), rtol=1e-12, atol=1e-15)
    assert stable_lr(problem, 2) <= min(stable_lr(own, 2) for own in single) * (1 + 1e-12)
    loss, of_left, _ = problem.factor_gradients(network.weights[1], network.weights[0])
    one_loss, one_left, _ = single[1].factor_gradients(network.weights[1][1], network.weights[0][1])
    assert_close(loss[1], one_loss, rtol=1e-12, atol=0)
    assert_close(of_left[1], one_left, rtol=1e-12, atol=1e-15)


def test_runs_end_one_by_one():
    problem = Completion(gaussian(2, 6, 6), seen(2, 6, 6, fraction=0.9))
    network = DeepLinearNetwork((6, 6, 6), 0.8, generator=seeded(), runs=2)
    trajectory = gradient_descent(network, problem, Descent([2.0, 0.5]), 4000, every=10, tol=1e-6)
    assert trajectory.sizes["step"] < 401
    assert bool(np.isnan(trajectory["loss"].values).any())


def test_the_largest_stable_rate_is_named_when_descent_diverges():
    _, problem = both_forms(12, 12)
    network = DeepLinearNetwork((12, 2, 12), 0.5, generator=seeded())
    with pytest.raises(DivergenceError, match="largest stable rate here is about"):
        gradient_descent(network, problem, Descent(1e3), 200)


def test_the_largest_stable_rate_is_near_the_true_one():
    problem = Completion(low_rank_target(40, 40, rank=2, generator=seeded()), seen(40, 40, fraction=0.6))
    rate = stable_lr(problem, 2)
    for share, stays in ((0.6, True), (2.5, False)):
        network = DeepLinearNetwork((40, 2, 40), 0.1, generator=seeded())
        try:
            last = float(gradient_descent(network, problem, Descent(share * rate), 3000, every=3000)["loss"][-1])
        except DivergenceError:
            last = float("inf")
        assert (last < 1e-10) == stays


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


def test_a_product_is_split_where_it_is_narrowest():
    def weights(*sizes):
        return [torch.zeros(rows, columns) for columns, rows in pairwise(sizes)]

    assert narrowest_split(weights(9, 3, 2, 3, 8)) == 2
    assert narrowest_split(weights(9, 2, 2, 2, 8)) == 1
    assert narrowest_split(weights(8, 2, 2, 2, 9)) == 3
    factors = [gaussian(4, 7), gaussian(3, 4), gaussian(9, 3)]
    assert_close(product_of(factors), factors[2] @ factors[1] @ factors[0], rtol=1e-13, atol=1e-14)
