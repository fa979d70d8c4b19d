import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn.problems import Factorization, Regression, low_rank_target
from tests.cases import CHAINS, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])


@every_chain
@reductions
def test_the_loss_is_half_the_mean_or_sum_of_squares(chain, reduction):
    inputs, targets = chain.data()
    squares = (gaussian(chain.sizes[-1], chain.sizes[0]) @ inputs - targets).square()
    problem = chain.problem(reduction)
    expected = squares.mean() / 2 if reduction == "mean" else squares.sum() / 2
    assert_close(problem.loss(gaussian(chain.sizes[-1], chain.sizes[0])), expected, rtol=1e-13, atol=0)


@every_chain
@reductions
def test_the_gradient_is_autograds(chain, reduction):
    problem = chain.problem(reduction)
    matrix = gaussian(*problem.shape).requires_grad_()
    (expected,) = torch.autograd.grad(problem.loss(matrix), matrix)
    assert_close(problem.gradient(matrix.detach()), expected, rtol=1e-12, atol=1e-13)


@every_chain
def test_the_solution_is_the_smallest_of_the_best(chain):
    inputs, targets = chain.data()
    problem = chain.problem()
    expected, *_ = np.linalg.lstsq(inputs.T.numpy(), targets.T.numpy(), rcond=None)
    assert_close(problem.solution(), torch.from_numpy(expected.T), rtol=1e-10, atol=1e-12)
    assert_close(problem.minimum(), problem.loss(torch.from_numpy(expected.T)), rtol=1e-10, atol=1e-26)
    assert float(problem.gradient(problem.solution()).abs().max()) < 1e-12


@every_chain
@reductions
def test_condensing_changes_no_loss_and_no_gradient(chain, reduction):
    problem = chain.problem(reduction)
    condensed = problem.condensed()
    matrix = gaussian(*problem.shape)
    assert condensed.shape == problem.shape
    assert_close(condensed.loss(matrix), problem.loss(matrix), rtol=1e-13, atol=0)
    assert_close(condensed.gradient(matrix), problem.gradient(matrix), rtol=1e-12, atol=1e-14)
    assert_close(condensed.minimum(), problem.minimum(), rtol=1e-10, atol=1e-26)
    assert condensed.inputs is None or condensed.inputs.shape[-1] <= condensed.inputs.shape[-2]


def test_condensing_does_not_square_the_condition_number():
    inputs = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64)) @ gaussian(2, 6)
    targets = gaussian(1, 2, seed=2) @ inputs
    solution = Regression(inputs, targets).condensed().solution()
    # The small direction keeps 16 − 9 digits; through X Xᵀ, of condition 1e18, it would keep none.
    assert_close(solution, gaussian(1, 2, seed=2), rtol=1e-5, atol=0)


@given(shared=st.sampled_from(["inputs", "targets", "nothing"]), samples=st.integers(1, 7), thin=st.booleans())
def test_problems_side_by_side_are_the_single_ones(shared, samples, thin):
    runs, inputs_size, outputs = 3, 4, 2 if thin else 5
    inputs = gaussian(inputs_size, samples) if shared == "inputs" else gaussian(runs, inputs_size, samples)
    targets = gaussian(outputs, samples, seed=1) if shared == "targets" else gaussian(runs, outputs, samples, seed=1)
    problem = Regression(inputs, targets)
    matrices = gaussian(runs, outputs, inputs_size, seed=2)
    singles = [
        Regression(inputs if inputs.ndim == 2 else inputs[i], targets if targets.ndim == 2 else targets[i])
        for i in range(runs)
    ]
    assert problem.runs == runs
    for form in (problem, problem.condensed(), problem.condensed().select(torch.tensor([0, 1, 2]))):
        for index, single in enumerate(singles):
            chosen = form.select(torch.tensor([index]))
            one = matrices[index : index + 1]
            assert_close(form.loss(matrices)[index], single.loss(matrices[index]), rtol=1e-12, atol=0)
            assert_close(chosen.loss(one)[0], single.loss(matrices[index]), rtol=1e-12, atol=0)
            assert_close(form.gradient(matrices)[index], single.gradient(matrices[index]), rtol=1e-12, atol=1e-13)


def test_a_problem_without_runs_is_shared():
    assert Regression(gaussian(3, 5), gaussian(2, 5)).runs is None
    assert Factorization(gaussian(3, 3)).runs is None
    assert Factorization(gaussian(2, 3, 3)).runs == 2


def test_a_problem_changes_its_precision_without_changing_itself():
    problem = Regression(gaussian(3, 9), gaussian(2, 9)).condensed()
    single = problem.to(torch.float32)
    assert {single.inputs.dtype, single.targets.dtype, single.constant.dtype} == {torch.float32}
    assert problem.targets.dtype == torch.float64
    assert_close(single.loss(torch.zeros(2, 3)).double(), problem.loss(torch.zeros(2, 3).double()), rtol=1e-6, atol=0)


def test_inputs_and_targets_meet_in_the_wider_precision():
    problem = Regression(gaussian(3, 5, dtype=torch.float32), gaussian(2, 5))
    assert problem.inputs.dtype == problem.targets.dtype == torch.float64


@pytest.mark.parametrize(
    "problem",
    [
        Factorization([[1.0, 0.0]]),
        pytest.param(
            Regression([[1.0], [0.0]], [[1.0]]),
        ),
    ],
)
def test_a_matrix_may_be_a_nested_list(problem):
    assert problem.loss([[1.0, 0.0]]).item() == 0.0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Factorization([[np.nan]]), ValueError, "target holds 1 values that are NaN"),
        (lambda: Factorization(np.ones(3)), ValueError, "target must be a matrix"),
        (lambda: Factorization(np.ones((1, 2, 3, 4))), ValueError, r"\(runs, rows, columns\), got \(1, 2, 3, 4\)"),
        (lambda: Factorization("target"), TypeError, "target must be a matrix of numbers"),
        (lambda: Factorization([[1.0]], "max"), ValueError, "reduction must be one of 'mean', 'sum'"),
        (lambda: Regression(gaussian(3, 5), gaussian(5, 2)), ValueError, r"5 samples .* 2; columns are samples"),
        (lambda: Regression(gaussian(2, 3, 5), gaussian(4, 2, 5)), ValueError, "inputs hold 2 runs and targets 4"),
        (lambda: Regression([[np.inf]], [[1.0]]), ValueError, "inputs holds 1 values"),
        (lambda: Regression(np.ones((3, 0)), np.ones((2, 0))), ValueError, "inputs is empty"),
        (lambda: Factorization(gaussian(3, 2)).loss(gaussian(2, 3)), ValueError, r"of shape \(3, 2\), got \(2, 3\)"),
        (lambda: Regression(gaussian(3, 4), gaussian(2, 4)).gradient(gaussian(3, 2)), ValueError, r"\(2, 3\)"),
    ],
)
def test_what_is_no_problem_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- low_rank_target


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_a_target_is_the_truncated_svd_of_a_gaussian_matrix(rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    target = low_rank_target(rows, columns, rank=rank, generator=seeded(7))
    whole = gaussian(rows, columns, seed=7)
    values = torch.linalg.svdvals(whole)
    expected = torch.cat([values[:rank], torch.zeros_like(values[rank:])])
    assert_close(torch.linalg.svdvals(target), expected, rtol=1e-12, atol=1e-13)
    # Eckart and Young: nothing of this rank is nearer, and only the truncation is as near.
    assert_close((whole - target).norm(), values[rank:].norm(), rtol=1e-12, atol=1e-13)


def test_the_values_of_a_target_are_near_the_edge_of_the_gaussian_spectrum():
    values = torch.linalg.svdvals(low_rank_target(300, 200, rank=3, generator=seeded()))[:3]
    assert_close(values, torch.full((3,), 300**0.5 + 200**0.5, dtype=torch.float64), rtol=0.05, atol=0)


def test_targets_side_by_side_differ():
    targets = low_rank_target(4, 3, rank=2, generator=seeded(), runs=3, dtype=torch.float32)
    assert (targets.shape, targets.dtype) == ((3, 4, 3), torch.float32)
    assert not torch.allclose(targets[0], targets[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": 4}, ValueError, "rank 4 exceeds the smaller side of a 5 x 3 matrix"),
        ({"rank": 1.0}, TypeError, "rank must be a whole number"),
        ({"rank": 1, "runs": 0}, ValueError, "runs must be at least 1"),
        ({"rank": 1, "generator": None}, TypeError, "torch.Generator"),
    ],
)
def test_what_is_no_target_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        low_rank_target(5, 3, **{"generator": seeded(), **arguments})
