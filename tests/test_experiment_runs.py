"""Runs of experiments: their settings and seeds alone decide them, and they measure what they say."""

import numpy as np
import pytest
import torch
import xarray as xr

from lowdyn import trajectory
from lowdyn.data import load_images
from lowdyn.dynamics import DivergenceError
from lowdyn.experiments import (
    evolution,
    frozen_features,
    heads,
    image_mlp,
    lowrank_mlp,
    near_orthonormal,
    orthonormal,
    spectra,
    theorem,
)
from lowdyn.experiments.fitting import denormals_as_zero, squared_error
from lowdyn.experiments.normalized import normalized_mlp
from lowdyn.lowrank import factorize
from lowdyn.networks import MLP
from lowdyn.observe import layer_metrics
from tests.cases import seeded

# One tiny run of every module that makes runs.
TINY = {
    "evolution": (evolution.run, {"width": 8, "rank": 1, "depth": 2, "init_scale": 0.5, "lr": 1.0, "steps": 4}),
    "theorem": (
        theorem.run,
        {
            **{"width": 8, "outputs": 8, "rank": 1, "depth": 2, "init_scale": 0.1, "weight_decay": 1e-4},
            **{"steps": 200, "lr_fraction": 0.3},
        },
    ),
    "orthonormal": (orthonormal.run, {"depth": 3, "init_scale": 0.5, "lr": 1.0, "classes": 2, "per_class": 3}),
    "near_orthonormal": (
        near_orthonormal.run,
        {"inputs": "gaussian", "width": 12, "per_class": 2, "depth": 3, "init_scale": 0.3, "lr": 0.02},
    ),
    "image_mlp": (
        image_mlp.run,
        {
            **{"images": load_images("digits"), "samples": 150, "width": 16, "depth": 3, "epochs": 2},
            "lr": 0.02,
        },
    ),
    "hybrid": (
        image_mlp.run,
        {
            **{"images": load_images("digits"), "samples": 150, "width": 16, "depth": 4, "relu_layers": 1, "epochs": 2},
            **{"lr": 0.02, "probed": True, "collapsing": True, "normalized": True, "bias": False},
        },
    ),
    "default start": (
        image_mlp.run,
        {
            **{"images": load_images("digits"), "samples": 150, "width": 16, "depth": 3, "epochs": 2, "lr": 1e-3},
            **{"start": "default", "rule": "adam"},
        },
    ),
    "spectra": (
        spectra.run,
        {
            **{"images": load_images("digits"), "model": "ViT", "samples": 150, "width": 16, "depth": 1},
            **{"epochs": 2, "lr": 0.02},
        },
    ),
    "heads": (
        heads.run,
        {
            **{"images": load_images("digits"), "samples": 150, "width": 16, "extra": 1, "epochs": 2, "lr": 0.02},
        },
    ),
}


# --- runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_a_run_is_its_settings_and_its_seed(name):
    run, settings = TINY[name]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (run(**settings, generator=seeded(seed)) for seed in (1, 1, 2))
    xr.testing.assert_identical(first, again)
    assert not first["loss"].equals(other["loss"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("name", TINY)
def test_a_run_can_be_written_and_read(name, tmp_path):
    run, settings = TINY[name]
    data = run(**settings, generator=seeded())
    xr.testing.assert_identical(trajectory.load(trajectory.save(data, tmp_path / "run.nc")), data)


def test_evolution_starts_where_theory_does():
    data = evolution.run(**evolution.PAPER[0], generator=seeded())
    assert [data.sizes[name] for name in ("step", "layer", "index")] == [51, 3, 30]
    np.testing.assert_allclose(data["singular_values"].sel(step=0), 1.0, rtol=1e-13)
    np.testing.assert_allclose(data["predicted_scale"].sel(step=0), 1.0, rtol=1e-13)
    assert data["loss"].diff("step").max() < 0


def test_a_disturbed_start_leaves_the_theory_undisturbed():
    settings = {**TINY["evolution"][1], "steps": 1}
    clean, disturbed = (evolution.run(**settings, disturbance=size, generator=seeded()) for size in (0.0, 1e-3))
    np.testing.assert_array_equal(clean["predicted_scale"], disturbed["predicted_scale"])
    moved = abs(clean["singular_values"] - disturbed["singular_values"]).max("index").sel(step=0)
    assert 1e-4 < moved.sel(layer=1) < 1e-1
    assert moved.sel(layer=2) < 1e-14


def test_scatter_of_orthonormal_samples_is_known():
    """Within: 1 − 1/n. Between, of K means of norm² 1/n around their mean of norm² 1/(K n): 1/n − 1/(K n)."""
    data = orthonormal.run(depth=2, init_scale=0.5, lr=5.0, generator=seeded(3))
    within, between = 1 - 1 / 10, 1 / 10 - 1 / 50
    np.testing.assert_allclose(data["within_between_ratio"].sel(layer=0), within / between, rtol=1e-12)
    np.testing.assert_allclose(data["class_discrimination"].sel(layer=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(data["class_separation"].sel(layer=0), 1 - 1 / 4, rtol=1e-12)
    assert list(data["layer"]) == [0, 1]
    assert data["steps"] == data["step"][-1]
    assert data["loss"][-1] < 1e-6 <= data["loss"][-2]


def test_shuffled_labels_change_what_is_measured_and_not_what_is_learnt():
    settings = {"depth": 3, "init_scale": 0.5, "lr": 2.0, "classes": 3, "per_class": 5}
    straight, shuffled = (orthonormal.run(**settings, shuffled=flag, generator=seeded()) for flag in (False, True))
    assert max(straight["loss"][-1], shuffled["loss"][-1]) < 1e-6
    last = {"layer": -1}
    assert straight["within_between_ratio"].isel(last) < 0.2 < 2 < shuffled["within_between_ratio"].isel(last)


def test_inputs_of_near_orthonormal_are_what_they_are_called():
    _, settings = TINY["near_orthonormal"]
    gaussian, exact = (
        near_orthonormal.run(**{**settings, "inputs": kind}, generator=seeded()) for kind in ("gaussian", "orthonormal")
    )
    np.testing.assert_allclose(exact["class_discrimination"].sel(layer=0), 1.0, rtol=1e-12)
    assert gaussian["class_discrimination"].sel(layer=0) < 0.99


def test_image_mlp_measures_every_layer_and_says_on_what():
    run, settings = TINY["image_mlp"]
    data = run(**settings, generator=seeded())
    assert data["within_between_ratio"].dims == ("layer",)
    assert list(data["layer"]) == [0, 1, 2]
    assert data["embedding"].sizes == {"layer": 3, "sample": 150, "axis": 2}
    np.testing.assert_allclose((data["embedding"] ** 2).mean(["sample", "axis"]), 1.0, rtol=1e-6)
    assert set(data["label"].values) == set(range(10))
    assert data.attrs["data"] == "digits"
    assert data.attrs["used"] == "150 of 1 797 images"
    assert data.attrs["sha256"] == load_images("digits").take(150).sha256


def test_a_hybrid_is_measured_in_every_way_that_is_asked_for():
    run, settings = TINY["hybrid"]
    data = run(**settings, generator=seeded())
    assert list(data["layer"]) == [0, 1, 2, 3]
    for name, most in (("feature_rank", 16), ("probe_accuracy", 1)):
        assert np.isnan(data[name].sel(layer=0))
        assert ((data[name] > 0) & (data[name] <= most)).sel(layer=slice(1, None)).all()
    assert data["epoch"].values.tolist() == [1, 2]
    np.testing.assert_array_equal(data["training_accuracy"], data["accuracy"])
    for name in ("nc1", "nc2", "nc3", "nc4"):
        assert (data[name] > 0).all()


def test_a_normalized_network_is_that_of_the_public_code():
    """Weight, batch normalization and ReLU, layer by layer; with the same weights as the network without."""
    sizes, inputs = (5, 7, 7, 3), torch.randn(9, 5, generator=seeded(), dtype=torch.float64)
    options = {"relu_layers": 1, "bias": False, "output_scale": 2.0, "dtype": torch.float64}
    network, plain = (build(sizes, generator=seeded(), **options) for build in (normalized_mlp, MLP))
    network.to(torch.float64)
    first, second, output = plain.weights
    hidden = inputs @ first.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(network(inputs), 2.0 * hidden.relu() @ second.T @ output.T)
    assert network.features == plain.features


def test_rank_is_the_number_of_values_that_make_up_most_of_their_sum():
    features = torch.randn(40, 12, generator=seeded(), dtype=torch.float64) * torch.logspace(0, -2, 12)
    values = np.linalg.svd(features.numpy(), compute_uv=False)
    assert frozen_features.nuclear_rank(features) == np.argmax(values.cumsum() / values.sum() >= 0.95) + 1 < 12


def test_frozen_features_are_measured_as_layers_are():
    images = load_images("digits").take(300)
    inputs, labels = torch.from_numpy(images.features()), torch.from_numpy(images.labels)
    fitted, scored = ((inputs[first::2], labels[first::2]) for first in (0, 1))
    metrics = layer_metrics(torch.nn.Linear(64, 2), [fitted], 10, probe=[scored]).sel(layer="input")
    assert frozen_features.within_between_ratio(*fitted, 10) == metrics["within_between_ratio"]
    assert frozen_features.probe_accuracy(*fitted, 10, scored=scored) == metrics["probe_accuracy"]


def test_squared_error_is_summed_over_classes():
    outputs, labels = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1])
    assert squared_error(outputs, labels) == (4.0 + 1.0) / 2


def test_denormal_numbers_are_zero_for_a_while():
    def half():
        return float(torch.tensor(torch.finfo(torch.float32).tiny) / 2)

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor keeps denormal numbers")
    assert half() > 0
    with denormals_as_zero():
        with pytest.raises(ZeroDivisionError), denormals_as_zero():
            raise ZeroDivisionError
        assert half() == 0.0
    assert half() > 0


@pytest.mark.parametrize("model", ["linear", "MLP", "ViT"])
def test_the_penultimate_weight_starts_orthogonal_and_moves_by_its_update(model):
    run, settings = TINY["spectra"]
    data = run(**{**settings, "model": model, "depth": 2}, generator=seeded())
    values, update = data["singular_values"].values, data["update_values"].values
    np.testing.assert_allclose(values[0], 1.0, rtol=1e-5)
    assert data["record_step"].values.tolist() == [0, 1, 2, 3, 4]
    # Weyl: no singular value moves by more than the largest of the update.
    assert abs(values - values[0]).max() <= update[0] * (1 + 1e-9)
    assert update[0] > 0
    assert data.attrs["classes"] == 10


def test_a_head_is_thrown_away_and_the_other_classes_are_new():
    run, settings = TINY["heads"]
    data = run(**settings, generator=seeded())
    assert set(data.data_vars) >= {"within_between_ratio", "transferred_ratio", "probe_accuracy"}
    assert not data["transferred_ratio"].equals(data["within_between_ratio"])
    # Permuted labels of the new classes are found by chance, one in five, and what was learnt is the same.
    permuted = run(**settings, shuffled=True, generator=seeded())
    xr.testing.assert_identical(permuted["within_between_ratio"], data["within_between_ratio"])
    assert permuted["probe_accuracy"] < 0.5 < data["probe_accuracy"]


def test_too_large_a_rate_is_an_error():
    run, settings = TINY["evolution"]
    with pytest.raises(DivergenceError, match=r"step \d+ with lr 1e\+06; the largest stable rate"):
        run(**{**settings, "lr": 1e6, "steps": 200}, generator=seeded())


# --- low-rank training ----------------------------------------------------------------------------------------


def low_rank(variant, **options):
    data = load_images("digits"), load_images("digits", split="test")
    settings = {"width": 60, "samples": 256, "epochs": 3, "usps_epochs": 9, "lr": 1e-3} | options
    return lowrank_mlp.run(data=data, variant=variant, generator=seeded(), **settings)


def test_low_rank_variants_have_the_layers_they_say():
    shapes = {variant: low_rank(variant) for variant in ("dense", "dense, one hidden layer less", "r = 20, 10")}
    ends, layer = (64 * 60 + 60) + (60 * 10 + 10), 60 * 60 + 60
    counts = {variant: data["parameters"].item() for variant, data in shapes.items()}
    assert counts == {
        "dense": ends + 2 * layer,
        "dense, one hidden layer less": ends + layer,
        "r = 20, 10": ends + 2 * 60 + 30 * 120,
    }
    assert shapes["r = 20, 10"]["rank"].values.tolist() == [[20, 10]]
    assert all(data["dense_parameters"].item() == counts["dense"] for data in shapes.values())
    assert shapes["dense"]["epoch"].values.tolist() == [1, 2, 3]


def test_low_rank_runs_are_their_seed_but_for_the_clock():
    first, again = (low_rank("advised").drop_vars(("seconds", "dense_seconds")) for _ in range(2))
    xr.testing.assert_identical(first, again)
    assert (first["rank"] > 0).all()


def test_the_published_sizes_are_those_of_the_paper_scale():
    plan = lowrank_mlp.LOWRANK_MLP.plans["paper"]
    assert {cell["width"] for cell in plan.cells} == {2000}
    assert [cell["variant"] for cell in plan.cells] == list(lowrank_mlp.VARIANTS)
    assert plan.seeds == 3
    model = MLP((784, 2000, 2000, 2000, 10), generator=seeded())
    table = factorize(model, dict(zip(lowrank_mlp.PAIRS, lowrank_mlp.RANKS["r = 10"], strict=True)), generator=seeded())
    assert table.parameters == (9_594_010, 1_674_010)
