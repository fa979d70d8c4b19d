"""Sampled networks: they follow the law of full draws, also at widths that no matrix fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.dynamics import SampledNetwork, sample_reduced_network, stable_lr
from lowdyn.dynamics.sampling import _haar_corner
from lowdyn.linalg import random_orthogonal
from lowdyn.problems import FactoredTarget, Factorization, low_rank_target
from tests.cases import seeded


def test_overlap_has_the_law_of_a_haar_corner():
    generator = seeded()
    ours = torch.stack([torch.linalg.svdvals(_haar_corner(60, 3, generator)) for _ in range(1000)])
    drawn = torch.stack(
        [torch.linalg.svdvals(random_orthogonal(60, 60, generator=generator)[:3, :3]) for _ in range(1000)]
    )
    for place in range(3):
        assert ks_2samp(ours[:, place], drawn[:, place]).pvalue > 1e-3


@pytest.mark.parametrize("outputs", [60, 3])
def test_loss_curves_have_the_law_of_full_draws(outputs):
    generator = seeded()
    problem = Factorization(low_rank_target(outputs, 60, rank=3, generator=generator))
    descent = Descent(lr=0.2 * stable_lr(problem, 3))
    draws, curves = 200, {"drawn": [], "sampled": []}
    for _ in range(draws):
        network = DeepLinearNetwork((60, 60, 60, outputs), 0.3, generator=generator)
        pair = {
            "drawn": reduce_network(network, problem),
            "sampled": sample_reduced_network(problem, 3, 0.3, generator=generator),
        }
        for name, small in pair.items():
            loss = gradient_descent(small, problem, descent, 120, every=20)["loss"]
            curves[name].append(np.log(loss.values[1:]))
    drawn, sampled = np.array(curves["drawn"]), np.array(curves["sampled"])
    error = np.sqrt((drawn.var(axis=0, ddof=1) + sampled.var(axis=0, ddof=1)) / draws)
    # Six looks: 4.0 is exceeded by chance in fewer than four of ten thousand seeds.
    assert np.max(abs(drawn.mean(axis=0) - sampled.mean(axis=0)) / error) < 4.0


@pytest.mark.parametrize("outputs", [50, 2])
def test_sampled_frames_fit_the_sampled_core(outputs):
    generator = seeded()
    problem = Factorization(low_rank_target(outputs, 50, rank=2, generator=generator))
    small = sample_reduced_network(problem, 3, 0.3, generator=generator)
    assert isinstance(small, SampledNetwork)
    first, last = small.active[0], small.active[-1]
    torch.testing.assert_close(last.mT @ problem.targets @ first, small._core_problem.targets, rtol=0, atol=1e-12)
    for basis in small.active:
        identity = torch.eye(basis.shape[1], dtype=basis.dtype)
        torch.testing.assert_close(basis.mT @ basis, identity, rtol=0, atol=1e-13)
    assert small.active is small.active  # drawn once
    # Nothing of the target lies outside the frames, so its norm is the core's.
    torch.testing.assert_close(small._core_problem.targets.norm(), problem.targets.norm())


def test_a_width_that_no_matrix_fits():
    generator = seeded()
    left, right = (random_orthogonal(200_000, 3, generator=generator) for _ in range(2))
    problem = FactoredTarget(left, [3.0, 2.0, 1.0], right, reduction="sum")
    small = sample_reduced_network(problem, 3, 0.1, generator=generator)
    loss = gradient_descent(small, problem, Descent(lr=0.05), 2000, every=500)["loss"]
    # Start: ½(‖Φ‖² − 2⟨Φ, W⟩ + ‖W‖²) with ‖Φ‖² = 14 and ‖W‖² = d ε^{2L} = 0.2; the cross term is random, near 1e-5.
    assert float(loss[0]) == pytest.approx(7.1, rel=1e-4)
    inert = float(small.inert_scale.prod())
    # What is left is inert, but for the core's three directions without a target among two hundred thousand, a share
    # of 1.5e-5 that the tolerance leaves room for.
    assert float(loss[-1]) == pytest.approx(0.5 * small.inert[0].dim * inert**2, rel=1e-4)


def test_sampling_refuses():
    generator = seeded()
    with pytest.raises(ValueError, match="no room"):
        sample_reduced_network(
            Factorization(low_rank_target(6, 6, rank=3, generator=generator)), 3, 0.1, generator=generator
        )
    with pytest.raises(ValueError, match="d_y = rank"):
        sample_reduced_network(
            Factorization(low_rank_target(9, 30, rank=3, generator=generator)), 3, 0.1, generator=generator
        )
    with pytest.raises(ValueError, match="orthonormal"):
        FactoredTarget(torch.ones(5, 2), [1.0, 1.0], torch.eye(5)[:, :2])
