"""A linear layer with Deep LoRA updates beside it, one for each adapter."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdyn.lowrank.deep_lora.config import DeepLoraConfig
from lowdyn.lowrank.deep_lora.factors import collapsed, start_factors


class DeepLoraLinear(nn.Module, BaseTunerLayer):
    """W x + b + Σ ΔW x over the active adapters, W untouched and never summed with ΔW unless merged.

    The base layer is an ``nn.Linear`` or a transformers ``Conv1D`` (whose weight is (in, out)). The update goes
    through submodules, x → A → C → B: ``deep_lora_A`` holds Vᵀ (or W_1), ``deep_lora_C`` the r x r cores,
    ``deep_lora_B`` U (or W_L).
    """

    adapter_layer_names = ("deep_lora_A", "deep_lora_C", "deep_lora_B")
    other_param_names = ("r", "deep_lora_dropout", "outer_ratio")

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.deep_lora_A, self.deep_lora_C, self.deep_lora_B = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.deep_lora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.outer_ratio: dict[str, float] = {}  # rate of A and B over that of C
        self.merged_adapters: list[str] = []
        self._name, self._active_adapter = name, []

    @property
    def _transposed(self) -> bool:
        return isinstance(self.get_base_layer(), Conv1D)

    @property
    def features(self) -> tuple[int, int]:
        """Numbers of inputs and outputs."""
        return features_of(self.get_base_layer())

    def update_layer(self, adapter_name: str, rank: int, config: DeepLoraConfig) -> None:
        """Add an adapter, at its start."""
        # Orthonormal factors in half precision are not orthonormal: they are kept in float32 unless PEFT is told
        # autocast_adapter_dtype=False.
        dtype = torch.promote_types(_floating(self.weight.dtype), torch.float32)
        factors = start_factors(config, rank, *self.features, name=self._name, dtype=dtype)
        for layers, factor in zip((self.deep_lora_A, self.deep_lora_C, self.deep_lora_B), factors, strict=True):
            layers[adapter_name] = factor
        if config.dropout:
            self.deep_lora_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.r[adapter_name] = rank
        self.outer_ratio[adapter_name] = config.discrepant_ratio if config.compressed else 1.0
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # To the device only: PEFT's own would round the factors to the base layer's half precision on the way.
        device = self.weight.device if device is None else device
        for layers in (self.deep_lora_A, self.deep_lora_C, self.deep_lora_B):
            if device.type != "meta" and not any(one.is_meta for one in layers[adapter_name].parameters()):
                layers[adapter_name].to(device)

    def factors(self, adapter_name: str) -> tuple[nn.Linear, nn.Module, nn.Linear]:
        """Return the modules A, C, B of an adapter; ValueError if this layer has no such adapter."""
        if adapter_name not in self.r:
            raise ValueError(f"{self._name} has no adapter {adapter_name!r}; it has {', '.join(self.r) or 'none'}")
        first, last = self.deep_lora_A[adapter_name], self.deep_lora_B[adapter_name]
        return cast(nn.Linear, first), self.deep_lora_C[adapter_name], cast(nn.Linear, last)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return ΔW in the form of the base weight (Conv1D: transposed) and the adapter's precision, detached."""
        first, _, _ = factors = self.factors(adapter_name)
        inner, outer = collapsed(*factors)
        delta = (outer @ inner).to(first.weight.dtype)
        return delta.mT if self._transposed else delta

    def merged_weight(self, adapter_names: list[str]) -> Tensor:
        """Return W + Σ ΔW over ``adapter_names``, rounded once to the precision of W."""
        return self._shifted(adapter_names, sign=1)

    def _shifted(self, adapter_names: list[str], *, sign: int) -> Tensor:
        weight = self.weight.detach()
        if not weight.is_floating_point():
            raise TypeError(
                f"{self._name} has a weight of {weight.dtype}, which no update can be added to; unquantize it"
            )
        total = weight
        for adapter in adapter_names:
            if adapter in self.r:
                total = total + sign * self.get_delta_weight(adapter)
        return total.to(weight.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters (by default the active ones) to the base weight, in place; once only.

        With ``safe_merge`` a ValueError, and a base weight as it was, if the sum is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.r]
        if not names:
            return
        merged = self.merged_weight(names)
        if safe_merge and not bool(merged.isfinite().all()):
            raise ValueError(
                f"merging {', '.join(names)} would leave NaN or infinity in {self._name}; nothing was merged. "
                "The adapter is broken, or too large for the precision of the base weight"
            )
        self.weight.data.copy_(merged)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Take the merged adapters out of the base weight again, up to rounding."""
        self.weight.data.copy_(self._shifted(self.merged_adapters, sign=-1))
        self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the active updates, in the precision of the former."""
        disabled = self.disable_adapters
        if disabled and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if disabled or self.merged_adapters:
            return result
        output, ranks = result, self.r
        rows = x.reshape(-1, x.shape[-1])  # once, and not in every factor, forward and backward
        # Of a narrow layer a step is calls more than arithmetic: every name is looked up once.
        firsts, cores, lasts, dropouts = self.deep_lora_A, self.deep_lora_C, self.deep_lora_B, self.deep_lora_dropout
        for adapter in self.active_adapters:
            if adapter in ranks:
                first = firsts[adapter]
                precision = cast(Tensor, first.weight).dtype
                inputs = rows if rows.dtype is precision else self._cast_input_dtype(rows, precision)
                if adapter in dropouts:
                    inputs = dropouts[adapter](inputs)
                output = output + lasts[adapter](cores[adapter](first(inputs))).view(result.shape)
        return output if output.dtype is result.dtype else output.to(result.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT may turn the update into LoRA: always (exactly, by :func:`export_lora`)."""
        return True

    def __repr__(self) -> str:
        return "deep_lora." + super().__repr__()


def features_of(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of an ``nn.Linear`` or ``Conv1D``."""
    if isinstance(layer, Conv1D):
        inputs, outputs = layer.weight.shape
        return inputs, outputs
    return layer.in_features, layer.out_features


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.float32
