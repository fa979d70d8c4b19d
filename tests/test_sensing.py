import pytest
import torch
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.dynamics import stable_lr
from lowdyn.problems import Factorization, Sensing, low_rank_target
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def measured(target, count, reduction="sum"):
    matrices = gaussian(count, *target.shape[-2:], seed=7) / count
    return Sensing(matrices, torch.einsum("nij,...ij->...n", matrices, target), reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradient_are_those_of_the_definition(reduction):
    problem, matrix = measured(gaussian(3, 5), 11, reduction), gaussian(3, 5, seed=1).requires_grad_()
    errors = [(one * matrix).sum() - value for one, value in zip(problem.matrices, problem.measurements, strict=True)]
    squares = torch.stack(errors).square()
    expected = squares.sum() / 2 if reduction == "sum" else squares.mean() / 2
    assert_close(problem.loss(matrix), expected, rtol=1e-13, atol=0)
    assert_close(problem.gradient(matrix.detach()), torch.autograd.grad(expected, matrix)[0], rtol=1e-12, atol=1e-17)
    weights = [gaussian(2, 5), gaussian(3, 2)]
    assert_close(problem.gradient_at(weights), problem.gradient(weights[1] @ weights[0]))


def test_measuring_every_entry_is_factorization():
    target = gaussian(3, 4)
    problem = Sensing(torch.eye(12, dtype=torch.float64).reshape(12, 3, 4), target.flatten())
    whole = Factorization(target, "sum")
    assert_close(problem.gradient(gaussian(3, 4, seed=1)), whole.gradient(gaussian(3, 4, seed=1)), rtol=1e-14, atol=0)
    one, other = (DeepLinearNetwork((4, 3, 3), 0.5, generator=seeded()) for _ in range(2))
    curves = [gradient_descent(*pair, Descent(0.02), 60)["loss"].values for pair in ((one, problem), (other, whole))]
    assert_close(curves[0], curves[1], rtol=1e-12, atol=0)


def test_the_surrogate_is_the_target_on_average():
    target = low_rank_target(5, 4, rank=1, generator=seeded())
    problem = measured(target, 20_000)
    assert_close(problem.surrogate(), target, rtol=0, atol=0.1)
    assert stable_lr(problem, 3) == pytest.approx(20_000 * stable_lr(Factorization(target, "sum"), 3), rel=0.1)


def test_a_low_rank_matrix_is_recovered_from_few_measurements():
    target = low_rank_target(20, 20, rank=1, generator=seeded())
    problem = measured(target, 150)
    network = DeepLinearNetwork((20, 20, 20, 20), 1e-2, generator=seeded())
    gradient_descent(network, problem, Descent(0.2 * stable_lr(problem, 3)), 6000, every=6000)
    assert float((network.end_to_end() - target).norm() / target.norm()) < 1e-3


def test_targets_side_by_side_are_the_single_ones():
    targets = gaussian(2, 3, 4)
    problem = measured(targets, 9)
    network = DeepLinearNetwork((4, 3), 0.5, generator=seeded(), runs=2)
    alone = [network.run(index) for index in range(2)]
    losses = gradient_descent(network, problem, Descent([0.3, 0.2]), 20)["loss"].values
    for index, one in enumerate(alone):
        single = measured(targets[index], 9)
        expected = gradient_descent(one, single, Descent([0.3, 0.2][index]), 20)["loss"].values
        assert_close(losses[:, index], expected, rtol=1e-11, atol=0)
        assert_close(problem.select(torch.tensor([index])).measurements[0], single.measurements)
    assert problem.runs == 2


def test_precision_and_comparison():
    problem = measured(gaussian(3, 3), 5)
    assert problem.to(torch.float32).dtype == torch.float32
    assert problem.same_as(measured(gaussian(3, 3), 5))
    assert not problem.same_as(measured(gaussian(3, 3), 5, "mean"))
    assert not problem.same_as(Factorization(gaussian(3, 3)))
    assert problem.select(torch.tensor([0])) is problem


def test_what_is_no_sensing_is_refused():
    matrices = gaussian(5, 3, 3)
    for measurements in (torch.zeros(4), torch.zeros(2, 4), torch.zeros(1, 1, 5)):
        with pytest.raises(ValueError, match="one number per matrix"):
            Sensing(matrices, measurements)
    with pytest.raises(ValueError, match="one per measurement"):
        Sensing(gaussian(3, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        Sensing(matrices, torch.full((5,), float("nan")))
    with pytest.raises(ValueError, match="'mean', 'sum'"):
        Sensing(matrices, torch.zeros(5), "max")
    with pytest.raises(ValueError, match="matrices of shape"):
        Sensing(matrices, torch.zeros(5)).loss(torch.zeros(2, 2))
    network = DeepLinearNetwork((3, 3), generator=seeded())
    with pytest.raises(TypeError, match="not Sensing: a masked or measured objective"):
        reduce_network(network, Sensing(matrices, torch.zeros(5)))
