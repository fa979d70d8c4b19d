"""Heads that PEFT would freeze and not save: what a new task's output goes through, and nothing adapts or keeps.

A freshly drawn head cannot be told from a pretrained one, so what is looked for is where new heads stand: under a
name that is usual for them, or as the last linear layer, outside of the body that is adapted. Left out are layers in
a row of alike ones, of which a user chose some, the bodies of transformers, which have no head (``BertModel`` and its
pooler), and the heads of language models as far as they are known to be pretrained.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from peft import TaskType
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowdyn.lowrank.deep_lora.config import DeepLoraConfig
from lowdyn.lowrank.deep_lora.layer import DeepLoraLinear

KEPT_BY_TASK = ("classifier", "score", "qa_outputs")  # what PEFT itself takes for a task's head
HEADS = (*KEPT_BY_TASK, "head", "fc", "output", "lm_head", "cls")
LANGUAGE_TASKS = (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)  # their head is the pretrained model's own


def lost_heads(model: nn.Module, config: DeepLoraConfig) -> list[str]:
    """Return the names of the parts of an adapted model that look like heads, and are neither trained nor saved."""
    if config.task_type in LANGUAGE_TASKS:
        return []
    named = [name for name, _ in model.named_children() if name in HEADS]
    last = _part_of_last_layer(model)
    places = Counter(id(one) for module in model.modules() for one in module._parameters.values())
    lost = []
    for name in dict.fromkeys(named if last is None else [*named, last]):
        parameters = list(model.get_submodule(name).parameters())
        tied = any(places[id(one)] > 1 for one in parameters)  # to embeddings, with which it came
        if parameters and not tied and not _holds(model.get_submodule(name), DeepLoraLinear, AuxiliaryTrainingWrapper):
            lost.append(name)
    return lost


def namesakes(model: nn.Module, name: str) -> list[str]:
    """Return the other modules that PEFT would keep under this name: all whose own name ends with it."""
    return [
        other
        for other, _ in model.named_modules()
        if other.endswith(name) and other != name and not other.startswith(f"{name}.")
    ]


def _part_of_last_layer(model: nn.Module) -> str | None:
    """Return the outermost part around the last linear layer that holds no adapted layer; None inside the body."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    pieces = linear[-1].split(".")
    names = [".".join(pieces[:length]) for length in range(len(pieces) + 1)]
    path = [model.get_submodule(name) for name in names]
    if any(isinstance(one, DeepLoraLinear) or _is_body(one) for one in path):
        return None
    for owner, part in pairwise(path):
        alike = [one for one in owner.children() if one is not part and _kind(one) == _kind(part)]
        # Blocks that repeat are a body; single layers may also be a head's, unless some of the row are adapted.
        if alike and (part is not path[-1] or any(_holds(one, DeepLoraLinear) for one in alike)):
            return None
    return next((name for name, one in zip(names, path, strict=True) if not _holds(one, DeepLoraLinear)), None)


def _is_body(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and module.base_model is module


def _kind(module: nn.Module) -> object:
    """Return what alike parts have in common: their class, and of containers the classes of what they hold."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return type(module), *map(_kind, module)
    return type(module.get_base_layer() if isinstance(module, DeepLoraLinear) else module)


def _holds(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    return any(isinstance(one, kinds) for one in module.modules())
