"""The theorem of reduction: invariant frames, the recursion of inert scales, and the block form that weights keep."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent
from lowdyn.dynamics import Family, Frames, inert_scales, invariant_frames, stable_lr
from lowdyn.experiments.starts import start_with_frames
from lowdyn.linalg import principal_angles, random_orthogonal, whiten
from lowdyn.observe import BlockStructure
from lowdyn.problems import Factorization, Regression, low_rank_target
from tests.cases import gaussian, seeded
from tests.oracles import block_form, descend_whitened, inert_recursion

pytestmark = pytest.mark.usefixtures("nothing_global_changes")

# Rounding of a few dozen steps on weights of norm 1 and below.
TIGHT = {"rtol": 1e-11, "atol": 1e-13}


class Setting:
    """A theorem's setting: orthogonal factors of different scales, a low-rank target, whitened inputs or none."""

    def __init__(self, *, outputs: int | None, rank: int, inert: int, depth: int, scale: float, white: bool) -> None:
        width = 2 * rank + inert
        self.square, self.depth, self.rank, self.inert = outputs is None, depth, rank, inert
        rows = [width] * (depth - 1) + [width if self.square else rank]
        self.orthogonals = [random_orthogonal(m, width, generator=seeded(layer)) for layer, m in enumerate(rows)]
        self.scales = [scale * (1 + 0.1 * layer) for layer in range(depth)]
        target = low_rank_target(rows[-1], width, rank=rank, generator=seeded(50))
        self.stretch = 2.5 if white else 1.0
        if white:
            inputs, _ = whiten(gaussian(width, width + 3, seed=60), scale=self.stretch)
            self.problem = Regression(inputs, target @ inputs + self._unseen(rows[-1], inputs))
        else:
            self.problem = Factorization(target)

    @staticmethod
    def _unseen(rows: int, inputs: Tensor) -> Tensor:
        """Return a part of the targets that no matrix reaches: orthogonal to the rows of X, it leaves Φ alone."""
        noise = gaussian(rows, inputs.shape[1], seed=70)
        return noise - noise @ torch.linalg.pinv(inputs) @ inputs

    def network(self) -> DeepLinearNetwork:
        return DeepLinearNetwork.from_weights(e * q for e, q in zip(self.scales, self.orthogonals, strict=True))

    def descent(self, **rule: float) -> Descent:
        memory = {key: rule[key] for key in ("momentum", "nesterov") if key in rule}
        return Descent(0.3 * stable_lr(self.problem, self.depth, weights=self.network().weights, **memory), **rule)


settings_of_the_theorem = st.builds(
    lambda rank, square, **options: Setting(rank=rank, outputs=None if square else rank, **options),
    square=st.booleans(),
    rank=st.integers(1, 3),
    inert=st.integers(1, 4),
    depth=st.integers(1, 5),
    scale=st.sampled_from([1.0, 0.3, 0.01]),
    white=st.booleans(),
)
rules = st.sampled_from(
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ]
)


# --- the frames


@given(settings_of_the_theorem)
def test_frames_are_orthonormal_and_closed_under_weights_and_target(setting):
    frames = invariant_frames(setting.network(), setting.problem)
    active = frames.bases[0].shape[1]
    assert active <= 2 * setting.rank
    assert frames.inert_dim == 2 * setting.rank + setting.inert - active
    assert frames.stretch == pytest.approx(setting.stretch, rel=1e-13)
    assert frames.init_scales == pytest.approx(setting.scales, rel=1e-13)
    (family,) = frames.families
    assert (family.dim, family.passes) == (frames.inert_dim, setting.square)
    for basis in frames.bases:
        identity = torch.eye(basis.shape[1], dtype=torch.float64)
        assert_close(basis.T @ basis, identity, rtol=0, atol=1e-13)

    def outside(vectors, basis):
        return float((vectors - basis @ (basis.T @ vectors)).norm())

    for weight, right, left in zip(setting.orthogonals, frames.bases[:-1], frames.bases[1:], strict=True):
        assert outside(weight @ right, left) < 1e-13
        assert outside(weight.T @ left, right) < 1e-13
    correlation = setting.problem.correlation
    assert outside(correlation.T, frames.bases[0]) < 1e-12
    assert outside(correlation, frames.bases[-1]) < 1e-12


@given(settings_of_the_theorem)
def test_frames_do_not_depend_on_the_size_of_the_target(setting):
    problem = setting.problem
    bigger = Regression(problem.inputs, 1e3 * problem.targets) if problem.inputs is not None else None
    bigger = bigger or Factorization(1e3 * problem.targets)
    for first, second in zip(
        invariant_frames(setting.network(), problem).bases,
        invariant_frames(setting.network(), bigger).bases,
        strict=True,
    ):
        assert float(principal_angles(first, second).max()) < 1e-12


def test_frames_count_common_directions_once():
    # Q = I and a symmetric target: V_P and QᵀU_P span the same r directions, not 2r.
    network = DeepLinearNetwork.from_weights([0.1 * np.eye(6)] * 3)
    frames = invariant_frames(network, Factorization(np.diag([3.0, 2.0, 0, 0, 0, 0])))
    assert (frames.bases[0].shape, frames.inert_dim) == ((6, 2), 4)


def test_frames_come_with_the_names_of_the_weights():
    setting = Setting(outputs=None, rank=1, inert=2, depth=2, scale=0.1, white=False)
    frames = invariant_frames(setting.network(), setting.problem)
    assert list(frames.by_layer()) == ["W1", "W2"]
    assert frames.by_layer()["W2"] == (frames.bases[2], frames.bases[1])


# --- the reduction


@given(settings_of_the_theorem, rules, st.integers(0, 40))
def test_the_weights_have_the_block_form_with_the_reduced_blocks(setting, rule, steps):
    network, descent = setting.network(), setting.descent(**rule)
    frames = invariant_frames(network, setting.problem)
    bases = [basis.numpy() for basis in frames.bases]
    cores = [left.T @ w.numpy() @ right for w, right, left in zip(network.weights, bases[:-1], bases[1:], strict=True)]
    core_target = bases[-1].T @ setting.problem.correlation.numpy() @ bases[0]
    law = {"stretch": setting.stretch, "scale": setting.problem.scale, "descent": descent, "steps": steps}
    cores = descend_whitened(cores, core_target, **law)
    rho = inert_recursion(setting.scales, **law, decays_only=not setting.square)
    expected = block_form(
        [q.numpy() for q in setting.orthogonals], bases, cores, rho[-1], last_is_active=not setting.square
    )
    gradient_descent(network, setting.problem, descent, steps)
    for weight, whole in zip(network.weights, expected, strict=True):
        assert_close(weight, torch.from_numpy(whole), **TIGHT)


@given(settings_of_the_theorem, rules)
def test_inert_scales_obey_the_recursion(setting, rule):
    frames = invariant_frames(setting.network(), setting.problem)
    descent = setting.descent(**rule)
    scales = inert_scales(frames, setting.problem, descent, steps=20, every=3)
    rho = inert_recursion(
        setting.scales,
        stretch=setting.stretch,
        scale=setting.problem.scale,
        descent=descent,
        steps=20,
        decays_only=not setting.square,
    )
    if not setting.square:
        rho[:, -1] = 0.0
    np.testing.assert_allclose(scales, rho[[0, 3, 6, 9, 12, 15, 18, 20]], rtol=1e-12, atol=1e-15)


def test_inert_scales_of_one_layer_decay_geometrically():
    frames = Frames((torch.eye(3)[:, :2],) * 2, (0.5,), 2.0, (Family(1, stretch=2.0, passes=True),))
    scales = inert_scales(frames, Factorization(torch.zeros(3, 3), "sum"), Descent(lr=0.125), steps=4)
    np.testing.assert_array_equal(scales[:, 0], 0.5 * 0.75 ** np.arange(5))


def test_the_middle_singular_values_are_the_inert_scale_and_do_not_turn():
    setting = Setting(outputs=None, rank=2, inert=6, depth=3, scale=0.5, white=False)
    network, descent = setting.network(), setting.descent()
    frames = invariant_frames(network, setting.problem)
    spectra = Spectra(top=2, reference=frames.by_layer())
    trajectory = gradient_descent(network, setting.problem, descent, 3000, record=spectra, every=1000)
    rho = inert_scales(frames, setting.problem, descent, 3000, every=1000)
    assert trajectory["loss"][-1] < 1e-3 * trajectory["loss"][0]
    values = trajectory["singular_values"].values[1:]
    middle = values[..., 2:8]
    np.testing.assert_allclose(middle, np.broadcast_to(rho[1:, :, None], middle.shape), rtol=1e-12)
    # A singular subspace is as well defined as its gap is wide (Davis and Kahan): 50·eps·σ_1/gap, the bound of C4.
    gap = np.minimum(values[..., 1] - values[..., 2], values[..., 7] - values[..., 8])
    bound = 50 * np.finfo(np.float64).eps * values[..., 0] / gap
    for side in ("right_turn", "left_turn"):
        assert (trajectory[side].sel(part="middle").values[1:] < bound).all()
    # The product is an isometry times Π ρ on the 6 inert inputs, and only there.
    inert = torch.eye(10, dtype=torch.float64) - frames.bases[0] @ frames.bases[0].T
    tail = torch.linalg.svdvals(network.end_to_end() @ inert)[:6]
    assert_close(tail, torch.full_like(tail, float(rho[-1].prod())), rtol=0, atol=1e-13)


# --- block structure, and what must make it fail


def residuals(start, disturbance=0.0, outputs=12):
    problem = Factorization(low_rank_target(outputs, 12, rank=2, generator=seeded()))
    network, frames = start_with_frames(
        (12, 12, 12, outputs), 0.3, problem, seeded(1), start=start, disturbance=disturbance
    )
    descent = Descent(lr=0.3 * stable_lr(problem, 3, weights=network.weights))
    trajectory = gradient_descent(network, problem, descent, 400, record=BlockStructure(frames.bases), every=50)
    predicted = inert_scales(frames, problem, descent, 400, every=50)
    size = float(trajectory["weight_norm"].max())
    return {
        "off_block": float(trajectory["off_block"].max()) / size,
        "inert_spread": float(trajectory["inert_spread"].max()) / size,
        "inert_scale": float(np.abs(trajectory["inert_scale"].values - predicted).max()) / size,
    }


@pytest.mark.parametrize("outputs", [12, 2])
def test_an_orthogonal_start_keeps_the_block_form(outputs):
    assert max(residuals("orthogonal", outputs=outputs).values()) < 1e-12


@pytest.mark.parametrize("start", ["normal", "uniform"])
def test_a_start_that_is_not_orthogonal_breaks_the_block_form(start):
    measured = residuals(start)
    assert measured["off_block"] > 0.1
    assert measured["inert_scale"] > 0.01


@pytest.mark.parametrize("disturbance", [1e-2, 1e-6])
def test_a_disturbed_start_breaks_the_block_form_by_as_much(disturbance):
    measured = residuals("orthogonal", disturbance)
    assert 0.1 * disturbance < measured["off_block"] < 1e3 * disturbance


def test_one_changed_entry_shows_in_the_blocks():
    setting = Setting(outputs=None, rank=1, inert=4, depth=2, scale=0.5, white=False)
    network = setting.network()
    look = BlockStructure(invariant_frames(network, setting.problem).bases).begin(network)
    before = look(0)
    network.weights[1][0, 0] += 0.1
    after = look(1)
    assert before["off_block"][1].max() < 1e-14
    assert before["inert_spread"][1].max() < 1e-14
    np.testing.assert_allclose(before["inert_scale"][1], setting.scales, rtol=1e-13)
    assert after["off_block"][1][0] < 1e-14
    assert after["off_block"][1][1] > 0.01
    assert after["inert_spread"][1][1] > 0.01


def test_block_structure_says_what_it_sees_of_a_known_matrix():
    # B_0 = B_1 = e_1, start 2·I: active block 2, inert block 2·I_2. Then W is written down entry by entry.
    network = DeepLinearNetwork.from_weights([2 * np.eye(3)])
    e1 = torch.eye(3, dtype=torch.float64)[:, :1]
    look = BlockStructure((e1, e1)).begin(network)
    network.weights[0].copy_(torch.tensor([[7.0, 3.0, 0.0], [4.0, 5.0, 0.0], [0.0, 1.0, 3.0]]))
    record = {name: values.tolist() for name, (_, values) in look(1).items()}
    assert record["off_block"] == pytest.approx([5.0])  # (3, 0) and (4, 0)
    assert record["inert_scale"] == pytest.approx([4.0])  # the mean of 5 and 3
    assert record["inert_spread"] == pytest.approx([3**0.5])  # 1, −1 on the diagonal and 1 beside it


def test_block_structure_needs_a_basis_on_each_side():
    e1 = torch.eye(3, dtype=torch.float64)[:, :1]
    with pytest.raises(ValueError, match="2 bases for 2 weights"):
        BlockStructure((e1, e1)).begin(DeepLinearNetwork((3, 3, 3), generator=seeded()))
