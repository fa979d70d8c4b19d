"""Vision transformers read from files: the same function as transformers', under its names and timm's."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from lowdyn.data import DataMissing, ImageSet, downloadable, load_set, set_available
from lowdyn.experiments import pretrained
from lowdyn.experiments.experiment import Experiment, Plan
from lowdyn.networks.pretrained import pretrained_vit
from lowdyn.runner import Folder, Reproduction
from tests.cases import gaussian, seeded

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "num_labels": 3}
IMAGES = gaussian((4, 8, 8, 3))


@pytest.fixture(params=[ViTModel, ViTForImageClassification])
def published(request, tmp_path):
    """A small model and the folder that transformers saves it to."""
    with torch.random.fork_rng(devices=[]):
        model = request.param(ViTConfig(image_size=8, patch_size=4, **SIZES)).eval()
        for parameter in model.parameters():  # biases too, which start as zeros
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "vit-b-16"
    model.save_pretrained(folder)
    return getattr(model, "vit", model), folder


def features(model, images):
    """What our head is given: the class token after the last norm."""
    seen = []
    with torch.no_grad(), model.norm.register_forward_hook(lambda module, given, made: seen.append(made)):
        model.double()(images)
    return seen[0]


def read(path, classes=3):
    return pretrained_vit(path, classes, generator=seeded())


def timm_of(tensors):
    """The tensors of transformers under timm's names, queries, keys and values in one."""
    plain = {name.removeprefix("vit."): value for name, value in tensors.items()}
    renamed = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm": "norm",
    }
    found = {}
    for name, value in plain.items():
        if "attention.attention" in name or name.startswith(("pooler", "classifier")):
            continue
        for theirs, timm in renamed.items():
            name = name.replace(theirs, timm)
        found[name] = value
    for block in range(2):
        for kind in ("weight", "bias"):
            place = f"encoder.layer.{block}.attention.attention"
            parts = [plain[f"{place}.{one}.{kind}"] for one in ("query", "key", "value")]
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return {**found, "head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}


def test_the_function_is_that_of_transformers(published):
    theirs, folder = published
    ours = read(folder / "model.safetensors")
    assert ours(IMAGES.float()).abs().max() == 0  # a head of zeros
    with torch.no_grad():
        expected = theirs.double()(pixel_values=IMAGES.permute(0, 3, 1, 2)).last_hidden_state[:, 0]
    assert_close(features(ours, IMAGES), expected)


def test_names_of_timm_give_the_same_weights(published, tmp_path):
    _, folder = published
    expected = read(folder / "model.safetensors").state_dict()
    place = tmp_path / "timm" / "vit.safetensors"
    place.parent.mkdir()
    save_file(timm_of(load_file(folder / "model.safetensors")), place)
    (place.parent / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    ours = read(place)
    assert_close(ours.state_dict(), expected)
    assert ours.block1.heads == 3
    assert ours.norm.eps == 1e-6


def test_half_precision_is_read_in_single(published, tmp_path):
    _, folder = published
    halves = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    weights = read(folder / "model.safetensors").state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}


def changed(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    key = next(one for one in tensors if one.endswith(name))
    del tensors[key]
    save_file(tensors if value is None else {**tensors, key: value}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("1.intermediate.dense.weight", torch.ones(40, 24), r"1.intermediate.dense.weight' is .*\(40, 24\), needed"),
        ("0.attention.attention.key.bias", torch.ones(23), r"needed floating-point \(24,\)"),
        ("0.layernorm_after.weight", torch.ones(24, dtype=torch.int32), "int32"),
        ("projection.weight", torch.ones(24, 48), "needed 4 dimensions"),
        ("projection.weight", torch.ones(24, 1, 4, 4), "num_channels"),
        ("position_embeddings", torch.ones(1, 8, 24), "a square number of patches"),
        ("cls_token", None, "no vision transformer"),
        ("1.output.dense.bias", None, "'.*encoder.layer.1.output.dense.bias' is missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(published, name, value, said):
    _, folder = published
    changed(folder, name, value)
    with pytest.raises(ValueError, match=said) as refused:
        read(folder / "model.safetensors")
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_another_architecture_is_refused(published):
    _, folder = published
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "encoder.layer.0.gamma": torch.ones(24)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'encoder\.layer\.0\.gamma': not of this architecture"):
        read(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"hidden_act": "relu"}', "says hidden_act = 'relu'"),
        ('{"num_attention_heads": 5}', "5 heads"),
        ('{"num_attention_heads": "3"}', "'3' heads"),
        ('{"num_hidden_layers": 12}', "says num_hidden_layers = 12"),
        ("[]", "no JSON object"),
        ("{", "no config that can be read"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(published, config, said):
    _, folder = published
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=said):
        read(folder / "model.safetensors")


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read(path)


# --- the data folder and the experiment ---------------------------------------------------------------------------


def test_it_is_found_in_the_data_folder(published):
    _, folder = published
    held = load_set("vit_b_16", folder.parent)
    assert held.path == folder / "model.safetensors"
    assert set_available("vit_b_16", folder.parent)
    assert not set_available("vit_b_16", folder)
    assert not downloadable("vit_b_16")
    with pytest.raises(DataMissing, match=r"vit-b-16/model\.safetensors .* config\.json into the data folder"):
        load_set("vit_b_16", folder)


def pictures():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    return ImageSet("pictures", "train", images, np.arange(30) % 3, ("a", "b", "c"), full_size=30)


def test_fine_tuning_is_observed(published):
    _, folder = published
    data = (pictures(), load_set("vit_b_16", folder.parent))
    before = read(folder / "model.safetensors").block2.contract.weight.detach()
    seen = pretrained.run(data=data, kept=24, batch=8, steps=5, lr=0.1, generator=seeded())
    assert seen.attrs["model"] == "ViT of width 24, 2 blocks, patches of 4"
    assert seen["record_step"].values.tolist() == [0, 1, 2, 3, 4, 5, 6]  # two passes of three updates
    assert_close(seen["singular_values"].values[0], torch.linalg.svdvals(before.double()).numpy())
    assert seen["update_values"].values[0] > 0
    assert np.isfinite(seen["loss"]).all()
    assert seen["accuracy"].sizes == {"step": 2}


def test_small_images_are_enlarged(published):
    _, folder = published
    model = read(folder / "model.safetensors")
    torch.nn.init.normal_(model.output.weight, generator=seeded())
    small = gaussian((2, 4, 4, 3)).float()
    large = torch.nn.functional.interpolate(small.permute(0, 3, 1, 2), size=8, mode="bilinear").permute(0, 2, 3, 1)
    assert_close(pretrained.Enlarged(model)(small.flatten(1)), model(large))
    assert_close(pretrained.Enlarged(model)(large.flatten(1)), model(large))


def test_without_one_it_says_where_to_put_it():
    paper = pretrained.SPECTRA_PRETRAINED.plans["paper"]
    seen = pretrained.run(**paper.cells[0], data=paper.data[-1], generator=seeded())
    assert "vit-b-16/model.safetensors" in seen.attrs["cannot"]
    quick = pretrained.run(**pretrained.SPECTRA_PRETRAINED.plans["quick"].cells[0], generator=seeded())
    assert "paper scale" in quick.attrs["cannot"]


def test_a_file_that_does_not_fit_is_told_and_not_raised(published):
    _, folder = published
    changed(folder, "1.output.dense.bias", None)
    data = (pictures(), load_set("vit_b_16", folder.parent))
    seen = pretrained.run(data=data, kept=24, batch=8, steps=5, lr=0.1, generator=seeded())
    assert "1.output.dense.bias' is missing" in seen.attrs["cannot"]


def test_a_download_does_not_ask_for_what_cannot_be_fetched(published):
    _, folder = published
    plan = Plan(({},), data=(("digits/train", "vit_b_16"), ()))
    experiment = Experiment("some", pretrained.run, {"paper": plan})
    for place, count in ((folder.parent, 2), (folder, 0)):
        reproduction = Reproduction(Folder(folder), "paper", data_dir=place, download=True)
        assert len(reproduction.sweep(experiment).sets) == count
