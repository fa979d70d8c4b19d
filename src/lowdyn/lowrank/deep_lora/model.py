"""How Deep LoRA enters a model: PEFT's tuner, with messages that name the layers."""

from __future__ import annotations

import re
import warnings
from typing import Any, cast

import torch
from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lowdyn.lowrank.deep_lora.config import DeepLoraConfig
from lowdyn.lowrank.deep_lora.heads import KEPT_BY_TASK, lost_heads, namesakes
from lowdyn.lowrank.deep_lora.layer import DeepLoraLinear, features_of
from lowdyn.lowrank.deep_lora.registration import PREFIX

FEW = 0.1  # a smaller share of adapted linear layers is remarked upon


class DeepLoraModel(BaseTuner):
    """PEFT's tuner for Deep LoRA; made by ``get_peft_model``. A call that fails leaves the model as it was."""

    prefix = PREFIX
    tuner_layer_cls = DeepLoraLinear
    target_module_mapping = cast(Any, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the layers that the configuration matches; ValueError, with the candidates, if there is none."""
        config = cast(DeepLoraConfig, self.peft_config[adapter_name])
        named = config.target_modules
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception as error:
            _withdraw(model, adapter_name)
            if isinstance(error, NoMatchingPeftModuleError) or (isinstance(error, ValueError) and named is None):
                raise NoMatchingPeftModuleError(f"{error} {_candidates(model)}") from error
            raise
        if not config.inference_mode:  # of an adapter that is loaded to be used, nothing is left to choose
            adapted = [name for name, layer in _adapted(model) if adapter_name in layer.r]
            _warn_of_few(model, named, adapted, config)
            _warn_of_lost_heads(model, config)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **unused: Any,
    ) -> None:
        pattern = get_pattern_key(list(peft_config.rank_pattern), current_key)
        rank = peft_config.rank_pattern.get(pattern, peft_config.r)
        layer = target if isinstance(target, DeepLoraLinear) else None
        base = layer.get_base_layer() if layer else target
        # nn.MultiheadAttention reads the weight of its projection and never calls it: an update would be lost.
        if not isinstance(base, nn.Linear | Conv1D) or isinstance(base, NonDynamicallyQuantizableLinear):
            raise TypeError(
                f"{current_key} is a {type(base).__name__}; Deep LoRA adapts nn.Linear and transformers' Conv1D: "
                "name other layers in target_modules, or this one in exclude_modules"
            )
        inputs, outputs = features_of(base)
        if rank >= min(inputs, outputs):
            raise ValueError(
                f"rank {rank} for {current_key}, which has {inputs} inputs and {outputs} outputs: a low-rank update "
                f"needs a rank below {min(inputs, outputs)}; pass a smaller r, rank_pattern={{{target_name!r}: …}}, "
                f"or exclude_modules=[{target_name!r}]"
            )
        if layer is None:
            layer = DeepLoraLinear(target, current_key)
            layer.train(target.training)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, rank, peft_config)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge as PEFT does; with ``safe_merge`` either every layer or none."""
        self._check_before_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        safe = kwargs.get("merge", True) and kwargs.get("safe_merge", False)
        self._check_before_merge(kwargs.get("adapter_names"), safe)
        return super()._unload_and_optionally_merge(*args, **kwargs)

    def _check_before_merge(self, adapter_names: list[str] | None, safe: bool) -> None:
        for name, layer in _adapted(self.model) if safe else ():
            todo = [one for one in adapter_names or layer.active_adapters if one not in layer.merged_adapters]
            if not bool(layer.merged_weight(todo).isfinite().all()):
                raise ValueError(
                    f"merging {', '.join(todo)} would leave NaN or infinity in {name}; no layer was merged. "
                    "The adapter is broken, or too large for the precision of the base weights"
                )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Factors are float32 beside half precision from the start; without the autocast they follow the base.
        for _, layer in _adapted(self.model):
            if adapter_name in layer.r:
                precision = torch.float32 if autocast_adapter_dtype else layer.weight.dtype
                for factor in layer.factors(adapter_name):
                    if not autocast_adapter_dtype or layer.weight.dtype != torch.float64:
                        factor.to(precision)


def _adapted(model: nn.Module) -> list[tuple[str, DeepLoraLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, DeepLoraLinear)]


def _withdraw(model: nn.Module, adapter_name: str) -> None:
    """Undo an injection that failed on its way."""
    for name, layer in _adapted(model):
        if set(layer.r) <= {adapter_name}:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)
        elif adapter_name in layer.r:
            layer.delete_adapter(adapter_name)


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the layers that can be adapted, those already adapted among them, their factors not.

    A part that an adapter keeps (``modules_to_save``) stands once, under the name that it has without adapters.
    """
    kept = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    unlisted = tuple(f"{name}." for name, _ in _adapted(model)) + tuple(f"{name}.modules_to_save." for name in kept)
    kinds = nn.Linear | Conv1D | DeepLoraLinear
    names = [
        name for name, module in model.named_modules() if isinstance(module, kinds) and not name.startswith(unlisted)
    ]
    for part in kept:
        names = [re.sub(rf"^{re.escape(part)}\.original_module\b", part, name) for name in names]
    return names


def _candidates(model: nn.Module) -> str:
    endings: dict[str, int] = {}
    for name in _linear_layers(model):
        ending = name.rpartition(".")[2]
        ending = name if ending.isdigit() else ending
        endings[ending] = endings.get(ending, 0) + 1
    listed = [f"{ending} ({count})" if count > 1 else ending for ending, count in endings.items()]
    listed = [*listed[:20], "…"] if len(listed) > 20 else listed
    if not listed:
        return "This model has no linear layer."
    return f"The linear layers of this model are {', '.join(listed)}; name some, or pass target_modules='all-linear'."


def _warn_of_few(model: nn.Module, named: Any, adapted: list[str], config: DeepLoraConfig) -> None:
    linear = _linear_layers(model)
    idle = sorted(
        one
        for one in (named if isinstance(named, set) else ())
        if not any(re.search(rf"(^|\.){re.escape(one)}$", key) for key in adapted)
    )
    few = len(adapted) < FEW * len(linear) and config.layers_to_transform is None
    if idle or few:
        unmatched = f"; {', '.join(map(repr, idle))} of target_modules matched none" if idle else ""
        warnings.warn(
            f"Deep LoRA adapts {len(adapted)} of {len(linear)} linear layers ({len(adapted) / len(linear):.0%})"
            f"{unmatched}. {_candidates(model)}",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_lost_heads(model: nn.Module, config: DeepLoraConfig) -> None:
    for name in lost_heads(model, config):
        by_task = " (or the task_type, for which PEFT adds it)" if name in KEPT_BY_TASK else ""
        others = namesakes(model, name)
        rename = f", under a name with another end, which PEFT would find in {others[0]} too" if others else ""
        warnings.warn(
            f"the head {name!r} will not be trained, and not saved with the adapter: if it is new, pass "
            f"modules_to_save=[{name!r}]{by_task}{rename}",
            UserWarning,
            stacklevel=2,
        )
