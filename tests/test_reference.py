"""The stored runs of the papers' own code (JAX, float64), repeated from their stored starts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent, layer_metrics
from lowdyn.networks import MLP
from lowdyn.problems import Completion, Factorization, Regression

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "reference"
pytestmark = [
    pytest.mark.usefixtures("nothing_global_changes"),
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no stored runs: {FOLDER} is not there"),
]


def stored(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def weights(run, prefix, depth):
    return [run[f"{prefix}W{layer}"] for layer in range(1, depth + 1)]


def assert_same_curve(loss, expected):
    """1e-10 · value, and below it 1e-13 · √(value · start): there the order of summation decides (reference/README)."""
    expected = expected[: len(loss)]
    tolerance = 1e-10 * expected + 1e-13 * np.sqrt(expected * expected[0])
    np.testing.assert_array_less(np.abs(loss - expected), tolerance)


# --- theorem and factorization


@pytest.mark.parametrize("name", ["theorem_square_d30_r3_L3", "theorem_wide_d30_dy3_L3"])
def test_a_theorem_run_repeats_in_curve_weights_spectra_and_angles(name):
    run = stored(name)
    network = DeepLinearNetwork.from_weights(weights(run, "init_", 3))
    trajectory = gradient_descent(
        network,
        Factorization(run["target"]),
        Descent(lr=run["step_size"].item()),
        len(run["train_loss"]) - 1,
        record=Spectra(top=3, reference=1),
    )
    assert_same_curve(trajectory["loss"].values, run["train_loss"])
    for layer, weight in enumerate(network.weights, start=1):
        np.testing.assert_allclose(weight, run[f"final_W{layer}"], rtol=1e-10, atol=1e-13)
        expected = run[f"singular_values_W{layer}"]
        seen = trajectory["singular_values"].sel(layer=f"W{layer}").values[:, : expected.shape[1]]
        np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-13)
    for side in ("right", "left"):
        if f"W1_{side}_angle" in run:
            assert_same_angles(trajectory[f"{side}_angles"].sel(layer="W1").values, run[f"W1_{side}_angle"])


def assert_same_angles(seen, expected):
    assert np.isnan(seen[0]).all()  # step 0 is degenerate, the reference is step 1
    # The stored angles are arccosines: a cosine k units short of 1 reads as √(2k·eps), 4e-8 for k = 4. Their row 1,
    # step 1 against itself, shows that floor; at an angle θ the rounding of the cosine is divided by sin θ.
    floor = expected[1].max()
    assert 1e-8 < floor < 1e-7
    np.testing.assert_array_less(np.abs(seen - expected)[1:], floor + 1e-15 / np.maximum(expected[1:], 1e-8))
    wide = expected[1:] > 1e-3
    assert wide.mean() > 0.1
    np.testing.assert_allclose(seen[1:][wide], expected[1:][wide], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "prefix", "rates"),
    [
        ("original", "init_", None),
        ("compressed", "compressed_init_", (1.0, 1.0, 1.0)),
        ("compressed_ratio0", "compressed_init_", (0.0, 1.0, 0.0)),
    ],
)
def test_a_factorization_run_repeats_its_curve(name, prefix, rates):
    run = stored("factorization_d100_r10")
    network = DeepLinearNetwork.from_weights(weights(run, prefix, 3))
    descent = Descent(lr=run["step_size"].item(), factor_rates=rates)
    trajectory = gradient_descent(network, Factorization(run["target"]), descent, 100_000, every=100)
    assert_same_curve(trajectory["loss"].values, run[f"{name}_train_loss"])


# --- completion


class TestLoss:
    """Probe: ½ the mean square over the entries that were not observed."""

    __test__ = False
    coords: dict = {}  # noqa: RUF012

    def __init__(self, target, mask):
        self.target, self.unseen = torch.from_numpy(target), torch.from_numpy(~mask)

    def begin(self, model):
        self.model = model
        return self

    def __call__(self, step):
        errors = (self.model.end_to_end() - self.target)[self.unseen]
        return {"test_loss": ((), errors.square().mean().item() / 2)}


@pytest.mark.parametrize(
    ("name", "prefix", "rates", "steps"),
    [
        ("original", "init_", None, 13_200),
        ("compressed", "compressed_init_", (5.0, 1.0, 5.0), 3600),
        ("compressed_ratio0", "compressed_init_", (0.0, 1.0, 0.0), 25_000),
    ],
)
def test_a_completion_run_repeats_its_curves(name, prefix, rates, steps):
    run = stored("completion_d100_r5_p30")
    network = DeepLinearNetwork.from_weights(weights(run, prefix, 3))
    problem, descent = Completion(run["target"], run["mask"]), Descent(run["step_size"].item(), factor_rates=rates)
    probe = TestLoss(run["target"], run["mask"])
    trajectory = gradient_descent(network, problem, descent, steps, record=probe, every=50)
    assert_same_curve(trajectory["loss"].values, run[f"{name}_train_loss"])
    assert_same_curve(trajectory["test_loss"].values, run[f"{name}_test_loss"])


@pytest.mark.parametrize(("name", "rates"), [("compressed", (1.0, 1.0, 1.0)), ("compressed_ratio0", (0.0, 1.0, 0.0))])
def test_a_factorization_run_repeats_as_a_completion_of_everything(name, rates):
    run = stored("factorization_d100_r10")
    network = DeepLinearNetwork.from_weights(weights(run, "compressed_init_", 3))
    everything = np.nonzero(run["mask"])
    problem = Completion.from_sparse(sparse.coo_array((run["target"][everything], everything)))
    descent = Descent(run["step_size"].item(), factor_rates=rates)
    trajectory = gradient_descent(network, problem, descent, 5000, every=100)
    assert_same_curve(trajectory["loss"].values, run[f"{name}_train_loss"])


# --- collapse

LINEAR = [
    ("collapse_L4_init_scales", "L4_eps0.5_orth"),
    ("collapse_L4_init_scales", "L4_eps0.25_orth"),
    ("collapse_L4_init_scales", "L4_eps0.125_orth"),
    ("collapse_depths", "L6_eps0.5_orth"),
    ("collapse_L8_init_types", "L8_eps0.5_orth"),
    ("collapse_L8_init_types", "L8_eps0.5_norm"),
    ("collapse_L8_init_types", "L8_eps0.5_unif"),
    ("collapse_depths", "L10_eps0.5_orth"),
]


def repeat(name, start, activation):
    """Return the stored numbers of a run and ours: D_l, S_l, steps and the last loss."""
    run, depth = stored(name), int(start[1:].split("_")[0])
    build = DeepLinearNetwork.from_weights if activation == "linear" else MLP.from_weights
    network = build(weights(run, f"{start}_init_", depth))
    problem, descent = Regression(run["input"], run["target"]), Descent(lr=run["step_size"].item())
    trajectory = gradient_descent(network, problem, descent, 20_000, every=100, tol=run["tol"].item())
    batch = (torch.from_numpy(run["input"].T), torch.from_numpy(run["labels"]))
    hidden = None if activation == "linear" else r"^relu\d+$"
    metrics = layer_metrics(network, [batch], 5, hidden).isel(layer=slice(depth))
    numbers = ("within_over_between", "separation", "iterations", "final_loss")
    expected = [run[f"{start}_{activation}_{number}"] for number in numbers]
    seen = metrics["within_between_ratio"], metrics["class_separation"], trajectory["step"][-1], trajectory["loss"][-1]
    return expected, [np.asarray(value) for value in seen]


@pytest.mark.parametrize(
    ("name", "start", "activation"),
    [(*case, "linear") for case in LINEAR] + [(*case, "relu") for case in LINEAR[:4]],
)
def test_a_collapse_run_repeats_its_layers(name, start, activation):
    (ratios, separations, steps, loss), seen = repeat(name, start, activation)
    np.testing.assert_allclose(seen[0], ratios, rtol=1e-8)
    np.testing.assert_allclose(seen[1], separations, rtol=1e-8)
    assert seen[2] == steps
    # The problem is condensed, so a loss at 1e-22 is the rounding of numbers of order 0.1, squared.
    assert_same_curve(seen[3][None], np.array([loss])) if loss > 1e-12 else np.testing.assert_array_less(seen[3], 1e-20)


# The ReLU runs of L = 8 pass, after 7 000 steps and more on a plateau, a stretch in which a difference grows a
# hundredfold every few hundred steps, from 1e-14 to 1e-2 in the worst case; then they converge. What two correct
# programs share after it was measured on runs that differ by rounding alone (units or samples in another order, every
# start entry moved by one unit in the last place; 30 to 50 a start): how far D_1 and D_2 are from the stored ones, the
# fitted ratio of D from layer to layer, the steps and the last losses.
#
#   start  one entry moved by one unit   D_1, D_2   ratio            steps          loss
#   orth   D moves by 4e-7 … 1e-5        8 %        0.0967 … 0.1034  8 400 … 8 600  2.9e-7 … 6.1e-7
#   unif   D moves by 9e-6 … 3e-4        1 %        0.0914 … 0.0916  9 300          4.7e-7 … 4.9e-7
#   norm   D moves by 0 … 5e-3           11 %       0.0880 … 0.1178  10 100 … 11 100  1.4e-7 … 1e-6
#
# The stored numbers lie inside: 0.1014, 0.0914, 0.0993. One norm run in 50 left the others on a jump of the loss
# and ended with a ratio of 0.47, so its ratio is not asked for. No intermediate loss is stored to compare before the
# stretch.
#
# That it is rounding, of the stored runs as of ours, was measured with 64 bits of mantissa (benchmarks/rounding.py):
# summed forwards and backwards, such runs agree over D_l to 1.2e-8 (orth) and 6e-10 (unif; norm was run in one order).
# From them the stored ones are
#
#   start  D_1 exact        stored off in D_1 … D_7             steps           ratio
#   orth   2.310375627      -2.9e-2 -2.7e-2 … +2.1e-1 +2.9e-1   8 400 (8 500)   0.0972 (0.1014)
#   unif   2.050075226008   -1.1e-6 -1.1e-5 … -2.9e-3 -3.4e-3   9 300 (9 300)   0.0915 (0.0914)
#   norm   2.704            +4.7e-2 +3.3e-2 … -5.7e-1 -6.5e-1   11 600 (10 300) 0.1158 (0.0993)
#
# so no program repeats them to 1e-8 but by making the same rounding errors. L = 10 with ReLU takes some 100 000
# steps of the same kind (81 800 stored, 116 700 here): too slow for a test.
@pytest.mark.parametrize(
    ("start", "ratio_within"),
    [("L8_eps0.5_orth", 0.15), ("L8_eps0.5_unif", 0.15), ("L8_eps0.5_norm", None)],
)
def test_a_chaotic_collapse_run_repeats_what_rounding_leaves(start, ratio_within):
    (ratios, _, steps, loss), seen = repeat("collapse_L8_init_types", start, "relu")
    np.testing.assert_allclose(seen[0][0], ratios[0], rtol=1e-10)  # the input
    np.testing.assert_allclose(seen[0][1:3], ratios[1:3], rtol=0.25)
    assert seen[2] == pytest.approx(steps, rel=0.15)
    assert loss / 10 < seen[3] < 1e-6
    if ratio_within is not None:
        assert fitted_ratio(seen[0]) == pytest.approx(fitted_ratio(ratios), rel=ratio_within)


def fitted_ratio(ratios):
    return np.exp(np.polyfit(np.arange(len(ratios)), np.log(ratios), 1)[0])
