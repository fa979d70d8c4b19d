"""Packed attention: what Spectra sees in the module is what is seen in the file."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    BloomConfig,
    BloomModel,
    DebertaConfig,
    DebertaModel,
    GPT2Config,
    GPT2Model,
    MptConfig,
    MptModel,
)

from lowdyn.inspection import inspect_weights
from lowdyn.observe import weight_matrices
from tests.cases import built, gaussian
from tests.weight_files import low_rank, save


def tiny(kind):
    """A model with its attention packed: DeiT's linear layer, torch's own attention, GPT-2, BLOOM's by head."""
    if kind == "qkv":
        return nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})})
    if kind == "in_proj":
        return nn.Sequential(
            nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=5), nn.Conv2d(2, 3, 5)
        )
    if kind == "wide qkv":
        return nn.ModuleDict({"qkv": nn.Linear(4, 8)})
    if kind == "c_attn":
        return GPT2Model(GPT2Config(n_embd=4, n_head=2, n_layer=1, vocab_size=9, n_positions=5))
    if kind == "Wqkv":
        return MptModel(MptConfig(d_model=4, n_heads=2, n_layers=1, vocab_size=9, max_seq_len=5))
    if kind == "by head":
        sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 6}
        return DebertaModel(DebertaConfig(vocab_size=9, **sizes))
    return BloomModel(BloomConfig(hidden_size=4, n_head=2, n_layer=1, vocab_size=9))


@pytest.mark.parametrize("kind", ["qkv", "in_proj", "wide qkv", "c_attn", "Wqkv", "by head", "query_key_value"])
def test_matrices_are_those_of_spectra(tmp_path, kind):
    model = built(lambda: tiny(kind)).double()
    path = save(tmp_path / "model.safetensors", model.state_dict())
    if kind in ("query_key_value", "by head"):
        model.config.save_pretrained(tmp_path)
    found = {layer.name: layer for layer in inspect_weights(path).layers}
    expected = weight_matrices(model, ".")
    assert found.keys() == expected.keys()
    for name, layer in found.items():
        matrix = expected[name]()
        assert layer.shape == matrix.shape
        np.testing.assert_allclose(layer.weight.values, torch.linalg.svdvals(matrix), atol=1e-12)
        assert kind == "c_attn" or layer.reading == expected[name].reading.shown.replace("entries x dim", "out x in")


def test_queries_keys_and_values_are_those_that_the_models_use():
    """What the packed layer makes, taken apart as the model does, is what the matrices make."""
    x = gaussian(7, 4)
    mpt, deberta = (built(lambda kind=kind: tiny(kind)).double() for kind in ("Wqkv", "by head"))
    for model, name, ways in (
        (mpt, "blocks.0.attn.Wqkv", lambda made: made.chunk(3, dim=-1)),
        (
            deberta,
            "encoder.layer.0.attention.self.in_proj",
            lambda made: [one.flatten(1) for one in made.view(7, 2, -1).chunk(3, dim=-1)],
        ),
    ):
        matrices = weight_matrices(model)
        with torch.no_grad():
            made = ways(model.get_submodule(name)(x))
        for one, expected in zip("qkv", made, strict=True):
            assert_close(x @ matrices[f"{name}.{one}"]().mT, expected)


def test_attention_by_head_is_taken_apart_where_the_heads_are_known(tmp_path):
    model = built(lambda: tiny("query_key_value")).double()
    packed = model.state_dict()["h.0.self_attention.query_key_value.weight"]
    matrices = weight_matrices(model, "query_key_value")
    heads = packed.reshape(2, 3, 2, 4)  # head, which, of its dimensions, in
    for place, one in enumerate("qkv"):
        expected = torch.cat([heads[0, place], heads[1, place]])
        assert_close(matrices[f"h.0.self_attention.query_key_value.{one}"](), expected, rtol=0, atol=0)
    found = inspect_weights(save(tmp_path / "model.safetensors", model.state_dict()), layers="query_key_value")
    assert [layer.shape for layer in found.layers] == [(12, 4)]
    assert "left together, for want of a config.json" in found.notes[-1]


def test_updates_of_packed_attention_are_taken_apart(tmp_path):
    before = {"blocks.0.attn.qkv.weight": gaussian(12, 4)}
    after = {"blocks.0.attn.qkv.weight": gaussian(12, 4)}
    after["blocks.0.attn.qkv.weight"][4:8] += low_rank(4, 4, 2)
    found = inspect_weights(save(tmp_path / "after", after), save(tmp_path / "before", before))
    assert [(layer.name[-1], layer.update.rank) for layer in found.layers] == [("q", 0), ("k", 2), ("v", 0)]
    assert found.layers[0].stored == (12, 4)
