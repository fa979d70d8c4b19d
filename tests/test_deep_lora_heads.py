"""Which heads that an adapter would leave behind are remarked upon, and which layers are no heads."""

import re

import pytest
import torch
from peft import TaskType, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from lowdyn import DeepLoraConfig
from lowdyn.networks import MLP, SmallViT
from tests.adapted_models import TINY, base_model


def adapt(base, **options):
    return get_peft_model(base, DeepLoraConfig(r=3, **options))


def test_a_head_that_is_left_behind_is_remarked_upon():
    targets = ["query", "value"]
    with pytest.warns(UserWarning, match=r"head 'classifier' .* not saved .*modules_to_save=\['classifier'\]"):
        adapt(base_model("bert"), target_modules=targets)
    adapt(base_model("bert"), target_modules=targets, modules_to_save=["classifier"])  # a warning would be an error
    adapt(base_model("bert"), target_modules=targets, task_type=TaskType.SEQ_CLS)


class Unusual(nn.Module):
    """A body and a head of the names given."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def small_vit():
    return SmallViT((8, 8, 1), 4, width=8, depth=2, heads=2, generator=torch.Generator().manual_seed(0))


def language_model(*, tied):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, tie_word_embeddings=tied, **sizes))


def two_layers():
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("make", "targets", "head"),
    [
        (small_vit, ["query", "value"], "output"),
        (lambda: MLP((8, 9, 8, 5), generator=torch.Generator().manual_seed(0)), ["hidden1", "hidden2"], "output"),
        (lambda: Unusual(fc=nn.Linear(9, 9), body=base_model("stack")), ["0", "2", "4"], "fc"),  # it need not be last
        (lambda: Unusual(body=base_model("stack"), readout=nn.Linear(9, 9)), ["0", "2", "4"], "readout"),
        (lambda: Unusual(body=base_model("stack"), probe=two_layers()), ["body.0", "body.2"], "probe"),  # as a whole
        (lambda: Unusual(net=Unusual(body=base_model("stack"), readout=Conv1D(9, 9))), ["0", "2"], "net.readout"),
        (lambda: language_model(tied=False), ["q_proj", "v_proj"], "lm_head"),
    ],
)
def test_a_head_is_known_by_its_name_or_its_place(make, targets, head):
    """One remark, and what it says to do keeps the head in the adapter's file."""
    name = re.escape(repr(head))
    with pytest.warns(
        UserWarning, match=rf"^the head {name} will .* not saved .* modules_to_save=\[{name}\]$"
    ) as caught:
        adapt(make(), target_modules=targets)
    assert sum("head" in str(one.message) for one in caught) == 1
    model = adapt(make(), target_modules=targets, modules_to_save=[head])  # a warning would be an error
    assert any(f".{head}." in key and "deep_lora_" not in key for key in get_peft_model_state_dict(model))


def test_a_head_without_a_name_of_its_own_needs_one():
    """PEFT keeps what ends with a name: '1' is the head and the second block."""
    base = nn.Sequential(base_model("bert").bert, nn.Linear(16, 3))
    with pytest.warns(UserWarning, match=r"head '1' .*=\['1'\], under a name .* find in 0\.encoder\.layer\.1 too$"):
        adapt(base, target_modules=["query", "value"])


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: base_model("bert").bert, {"target_modules": ["query", "value"]}),  # the last layer is in a block
        (lambda: BertModel(BertConfig(vocab_size=30, **TINY)), {"target_modules": ["query", "value"]}),  # the pooler
        (lambda: BertModel(BertConfig(vocab_size=30, **TINY)), {"target_modules": ["query"], "layers_to_transform": 0}),
        (lambda: Unusual(encoder=BertModel(BertConfig(vocab_size=30, **TINY))), {"target_modules": ["query", "value"]}),
        (lambda: nn.Sequential(*small_vit().blocks), {"target_modules": ["query", "value"]}),
        (lambda: nn.Sequential(*small_vit().blocks), {"target_modules": r"0\.(query|value)"}),
        (lambda: base_model("stack"), {"target_modules": ["0", "2"]}),  # some of a row, by choice
        (small_vit, {"target_modules": "all-linear"}),
        (lambda: Unusual(body=base_model("stack"), head=nn.Identity()), {"target_modules": ["0", "2"]}),
        (lambda: language_model(tied=True), {"target_modules": ["q_proj", "v_proj"]}),
        (lambda: language_model(tied=False), {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}),
    ],
)
def test_what_is_no_new_head_is_not_remarked_upon(make, options):
    assert adapt(make(), **options).get_nb_trainable_parameters()[0] > 0  # a warning would be an error
