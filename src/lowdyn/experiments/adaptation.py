"""Ways to adapt a pretrained network, under one roof: full fine-tuning, LoRA, AdaLoRA, Deep LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdyn.linalg import numerical_rank
from lowdyn.seeding import drawn_seed

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Adaptation:
    """A network in the way it is adapted: ``groups(lr)`` go to the optimizer, ``after_step(step)`` follows its step,
    ``penalty()`` is added to the loss."""

    model: nn.Module
    groups: Callable[[float], Groups]
    after_step: Callable[[int], None] = lambda step: None
    penalty: Callable[[], Tensor | float] = lambda: 0.0

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(one.numel() for one in self.model.parameters() if one.requires_grad)


def adapt(
    model: nn.Module,
    method: str,
    *,
    rank: int,
    targets: list[str] | str,
    generator: torch.Generator,
    steps: int,
    head: list[str] | None = None,
) -> Adaptation:
    """Return ``model``, changed in place, adapted by ``method``; layers named by ``targets``, ``head`` in full.

    "full": all parameters. "lora": PEFT's, alpha = rank. "plain_lora": the two factors that Yaras et al. (2024) compare
    with, A ~ N(0, 1), B = 0, no scaling. "adalora": PEFT's, from 3/2 of the rank down to it over ``steps``.
    "deep_lora": three compressed factors, ε = 1e-3, γ = 1e-2.
    """
    if method == "full":
        return Adaptation(model, lambda lr: [{"params": list(model.parameters()), "lr": lr}])
    import peft

    from lowdyn.lowrank import DeepLoraConfig, deep_lora_parameter_groups

    shared: dict[str, Any] = {"target_modules": targets, "modules_to_save": head}
    if method == "deep_lora":
        seed = drawn_seed(generator)
        with _quiet():
            deep = peft.get_peft_model(model, DeepLoraConfig(r=rank, seed=seed, **shared))
        return Adaptation(deep, lambda lr: deep_lora_parameter_groups(deep, lr=lr))
    if method == "adalora":
        warm_up = max(1, steps // 10)
        config: Any = peft.AdaLoraConfig(
            target_r=rank,
            init_r=-(-3 * rank // 2),
            lora_alpha=rank,
            total_step=steps + 1,
            tinit=warm_up,
            tfinal=warm_up,
            **shared,
        )
    else:
        config = peft.LoraConfig(r=rank, lora_alpha=rank, **shared)
    with forked(generator), _quiet():
        adapted: Any = peft.get_peft_model(model, config)
    if method == "plain_lora":
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.data.normal_(generator=generator)
    groups = lambda lr: [{"params": [one for one in adapted.parameters() if one.requires_grad], "lr": lr}]  # noqa: E731
    if method == "adalora":
        return Adaptation(adapted, groups, adapted.base_model.update_and_allocate, lambda: _orthogonality(adapted))
    return Adaptation(adapted, groups)


def _orthogonality(model: nn.Module) -> Tensor:
    """AdaLoRA's penalty, which PEFT adds only to losses that the network itself computes: 0.5 mean ‖P Pᵀ − I‖."""
    factors = [
        one if "lora_A" in name else one.T
        for name, one in model.named_parameters()
        if "lora_A" in name or "lora_B" in name
    ]
    residuals = [torch.linalg.matrix_norm(one @ one.T - torch.eye(len(one), dtype=one.dtype)) for one in factors]
    return 0.5 * torch.stack(residuals).mean()


def update_rank(model: nn.Module, *, tolerance: float = 0.01) -> float:
    """Mean over the adapted layers of the number of singular values of ΔW above ``tolerance`` times the largest."""
    from peft.tuners.lora import LoraLayer

    from lowdyn.lowrank.deep_lora import DeepLoraLinear
    from lowdyn.lowrank.deep_lora.factors import collapsed

    ranks = []
    for layer in model.modules():
        if isinstance(layer, DeepLoraLinear):
            first, last = collapsed(*layer.factors("default"))
        elif isinstance(layer, LoraLayer):
            pair: Any = (layer.lora_A["default"], layer.lora_B["default"])
            first, last = (one.weight.detach().double() for one in pair)
        else:
            continue
        # σ(BA) = σ(R_B R_Aᵀ): the triangles of two thin QR factorizations.
        values = torch.linalg.svdvals(torch.linalg.qr(last)[1] @ torch.linalg.qr(first.T)[1].T)
        ranks.append(numerical_rank(values, rows=len(last), columns=first.shape[1], tolerance=tolerance))
    return sum(ranks) / len(ranks)


@contextmanager
def forked(generator: torch.Generator) -> Iterator[None]:
    """Let the global generator, from which other libraries draw, be one seeded by ``generator`` for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn_seed(generator))
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
