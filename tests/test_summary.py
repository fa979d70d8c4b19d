import numpy as np
import pytest
import torch
from scipy.stats import entropy

from lowdyn.linalg import random_orthogonal
from lowdyn.observe.summary import singular_values, summarize
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


@pytest.mark.parametrize("shape", [(7, 7), (9, 3), (3, 9), (9001, 3), (3, 9001), (1, 4), (4, 1), (1, 1)])
def test_values_are_numpys(shape):
    matrix = gaussian(*shape)
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(matrix), expected, rtol=1e-12)


def test_small_values_of_a_tall_matrix_are_not_squared_away():
    left, right = (random_orthogonal(rows, 3, generator=seeded(rows)) for rows in (10_000, 3))
    known = torch.tensor([1.0, 1e-6, 1e-12], dtype=torch.float64)
    np.testing.assert_allclose(singular_values(left @ torch.diag(known) @ right.T), known, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_summary_is_that_of_all_values(dtype):
    matrix = gaussian(12, 8).to(dtype)
    every = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    found = summarize(matrix, top=3)
    np.testing.assert_allclose(found.values, every[:3], rtol=1e-12)
    np.testing.assert_allclose(found.bulk, np.quantile(every[3:], [0, 0.25, 0.5, 0.75, 1]), rtol=1e-12)
    np.testing.assert_allclose(found.norm, np.linalg.norm(every), rtol=1e-12)
    np.testing.assert_allclose(found.stable_rank, (every**2).sum() / every[0] ** 2, rtol=1e-12)
    np.testing.assert_allclose(found.effective_rank, np.exp(entropy(every)), rtol=1e-12)
    assert found.numerical_rank == 8


def test_rounding_of_the_weights_own_type_is_not_rank():
    # Rank 2 in float32: what rounding added is rank in float64, where nothing excuses it.
    product = (gaussian(20, 2) @ gaussian(2, 20, seed=1)).float()
    assert summarize(product).numerical_rank == 2
    assert summarize(product.double()).numerical_rank == 20


def test_zeros_have_no_rank():
    found = summarize(torch.zeros(3, 4))
    assert (found.numerical_rank, found.stable_rank, found.effective_rank, found.norm) == (0, 0.0, 0.0, 0.0)
    assert found.bulk.isnan().all()


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.full((2, 2), torch.nan), ValueError, "NaN or infinite"),
        (torch.zeros(2, 2, 2), ValueError, r"one matrix \(out, in\), got shape \(2, 2, 2\)"),
        (torch.zeros(0, 2), ValueError, "empty"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        summarize(matrix)
