"""One layer as a pair W = BA: exact where W has that rank, the best there is where it has not, and back again."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d
from torch.testing import assert_close

from lowdyn.linalg import random_orthogonal
from lowdyn.lowrank.pairs import drawn, is_pair, low_rank_pair, merged, projected, truncated, worthwhile_rank
from tests.cases import built, gaussian, seeded
from tests.low_rank_layers import linear, of_rank, product

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


@pytest.mark.parametrize(("rank", "rows", "columns"), [(1, 4, 4), (3, 9, 5), (2, 5, 9), (4, 4, 7)])
def test_a_weight_of_exact_rank_is_factorized_without_loss(rank, rows, columns):
    layer = linear(of_rank(rank, rows, columns))
    pair, lost = low_rank_pair(layer, rank)
    assert lost < 1e-28  # squares of rounding
    assert_close(product(pair), layer.weight.detach(), rtol=0, atol=1e-14 * rows * columns)
    assert_close(pair(gaussian(6, columns)), layer(gaussian(6, columns)), rtol=1e-12, atol=1e-12)
    assert [tuple(p.shape) for p in pair.parameters()] == [(rank, columns), (rows, rank), (rows,)]


def test_what_is_lost_is_what_eckart_and_young_say():
    left, right = random_orthogonal(6, 3, generator=seeded(1)), random_orthogonal(5, 3, generator=seeded(2))
    matrix = left @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ right.mT
    b, a, lost = truncated(matrix, 1)
    assert lost == pytest.approx(5 / 21, rel=1e-13)
    assert_close((matrix - b @ a).square().sum() / matrix.square().sum(), torch.tensor(5 / 21, dtype=torch.float64))
    assert_close(b.mT @ b, a @ a.mT, rtol=1e-13, atol=1e-13)  # balanced
    assert_close((b.mT @ b).item(), 4.0)


def test_the_projection_is_the_layer_on_the_subspace_and_nothing_off_it():
    weight, active = gaussian(6, 9), random_orthogonal(9, 3, generator=seeded())
    b, a, lost = projected(weight, active)
    inside, outside = active @ gaussian(3, 4), gaussian(9, 4) - active @ (active.mT @ gaussian(9, 4))
    assert_close(b @ (a @ inside), weight @ inside, rtol=1e-12, atol=1e-12)
    assert_close(b @ (a @ outside), torch.zeros_like(b @ (a @ outside)), rtol=0, atol=1e-13)
    assert_close(b.mT @ b, a @ a.mT, rtol=1e-12, atol=1e-12)
    assert lost == pytest.approx(1 - float((weight @ active).square().sum() / weight.square().sum()))
    assert projected(0 * weight, active)[2] == 0.0


def test_a_zero_weight_stays_zero():
    pair, lost = low_rank_pair(linear(torch.zeros(3, 4)), 2)
    assert lost == 0.0
    assert not product(pair).any()


@given(
    rank=st.integers(1, 4), inputs=st.integers(4, 6), outputs=st.integers(4, 6), kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2), padding=st.sampled_from([0, 1]), dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular", "reflect"]), bias=st.booleans(),
)  # fmt: skip
def test_a_pair_of_convolutions_is_the_dense_one_of_its_product(
    rank, inputs, outputs, kernel, stride, padding, dilation, mode, bias
):
    layer = built(
        lambda: nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, bias=bias, padding_mode=mode, dtype=torch.float64
        )
    )
    images = gaussian(2, inputs, 7, 8)
    pair, _ = low_rank_pair(layer, rank)
    twin = copy.deepcopy(layer)
    twin.weight.data = product(pair).reshape(layer.weight.shape)
    assert_close(pair(images), twin(images), rtol=1e-11, atol=1e-11)
    back = merged(pair)
    assert_close(back(images), pair(images), rtol=1e-11, atol=1e-11)
    assert repr(back) == repr(layer)


def test_a_convolution_of_exact_rank_is_factorized_without_loss_also_with_words_for_padding():
    layer = built(lambda: nn.Conv2d(3, 8, (3, 5), padding="same", dtype=torch.float64))
    layer.weight.data = of_rank(2, 8, 45).reshape(8, 3, 3, 5)
    pair, lost = low_rank_pair(layer, 2)
    images = gaussian(2, 3, 6, 6)
    assert lost < 1e-28
    assert_close(pair(images), conv2d(images, layer.weight, layer.bias, padding="same"), rtol=1e-11, atol=1e-11)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_a_rank_is_worthwhile_exactly_where_multiply_adds_fall(rows, columns):
    ranks = [rank for rank in range(1, 45) if rank * (rows + columns) < rows * columns]
    assert worthwhile_rank(rows, columns) == max(ranks, default=0)


def test_drawn_factors_have_the_size_of_a_dense_start():
    b, a = drawn(300, 200, 50, generator=seeded())
    assert_close((b @ a).var() * 3 * 200, torch.tensor(1.0, dtype=torch.float64), rtol=0.03, atol=0)  # a sample's
    assert_close(b.norm() / a.norm(), torch.tensor(1.0, dtype=torch.float64), rtol=0.02, atol=0)
    again, _ = drawn(300, 200, 50, generator=seeded())
    assert torch.equal(again, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_kind_of_number_mode_and_what_learns_stay(dtype):
    layer = linear(gaussian(8, 8).to(dtype)).to(dtype).eval()
    layer.weight.requires_grad_(False)
    pair, _ = low_rank_pair(layer, 3)
    assert {p.dtype for p in pair.parameters()} == {dtype}
    assert [p.requires_grad for p in pair.parameters()] == [False, False, True]
    assert not any(module.training for module in pair.modules())
    assert pair[1].bias is layer.bias
    back = merged(pair)
    assert (back.weight.dtype, back.weight.requires_grad, back.training) == (dtype, False, False)
    assert back.bias is layer.bias


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_of_full_rank_is_merged_back_to_the_layer(seed):
    for layer in (linear(gaussian(7, 5, seed=seed)), linear(gaussian(5, 7, seed=seed), bias=False)):
        pair, lost = low_rank_pair(layer, 5)
        assert lost == 0.0
        assert_close(merged(pair).weight, layer.weight, rtol=1e-13, atol=1e-13)
        assert repr(merged(pair)) == repr(layer)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "rank must be at least 1"),
        (2.0, TypeError, "rank must be a whole number"),
        (6, ValueError, "rank 6 is more than a weight of 7 x 5 has, 5"),
    ],
)
def test_what_is_no_rank_of_a_layer_is_refused(rank, error, message):
    with pytest.raises(error, match=message):
        low_rank_pair(linear(gaussian(7, 5)), rank)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(9, 2), nn.Linear(2, 9)),  # a bias between
        lambda: nn.Sequential(nn.Linear(9, 9, bias=False), nn.Linear(9, 9)),  # no bottleneck
        lambda: nn.Sequential(nn.Linear(9, 2, bias=False), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(9, 2, bias=False), nn.Linear(2, 9), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(9, 2, 3, bias=False), nn.Conv2d(2, 9, 3)),
        lambda: nn.Sequential(nn.Conv2d(9, 2, 3, bias=False), nn.Conv2d(2, 9, 1, stride=2)),
        lambda: nn.Sequential(nn.Conv2d(8, 2, 3, bias=False, groups=2), nn.Conv2d(2, 9, 1)),
        lambda: nn.Sequential(nn.Conv2d(9, 2, 3, bias=False), nn.Linear(2, 9)),
        lambda: nn.ModuleList([nn.Linear(9, 2, bias=False), nn.Linear(2, 9)]),
    ],
)
def test_only_what_amounts_to_one_layer_is_a_pair(build):
    assert not is_pair(built(build))
