"""A training step of Deep LoRA against one of PEFT's LoRA: same model, same layers, same rank, same optimizer.

The optimizer is the fused AdamW, the default of transformers' Trainer. The loss is one that is not at its minimum: the
mean square of a layer norm's output would be, and gradients of a cube of 1e-3 times nothing are denormal numbers, with
which a processor is slow.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable

import peft
import torch
from timing import finish, medians, report
from torch.nn.functional import mse_loss
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from lowdyn import DeepLoraConfig
from lowdyn.lowrank import deep_lora_parameter_groups

RANK = 8
LIMIT = 1.10


def bert_step(config: BertConfig, batch: int, length: int, deep: bool) -> Callable[[], None]:
    """Return a training step on random tokens."""
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False)
    tokens = torch.randint(config.vocab_size, (batch, length))
    targets = torch.randn(batch, length, config.hidden_size)
    return step_of(model, lambda adapted: mse_loss(adapted(tokens).last_hidden_state, targets), deep)


def vit_step(config: ViTConfig, batch: int, deep: bool) -> Callable[[], None]:
    """Return a training step on random images."""
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    images = torch.randn(batch, config.num_channels, config.image_size, config.image_size)
    targets = torch.randn(batch, config.hidden_size)
    return step_of(
        model.vit, lambda adapted: mse_loss(adapted(pixel_values=images).last_hidden_state[:, 0], targets), deep
    )


def step_of(model: torch.nn.Module, loss: Callable[..., torch.Tensor], deep: bool) -> Callable[[], None]:
    """Return forward, backward and AdamW step of the adapted model, all linear layers targeted."""
    if deep:
        adapted = peft.get_peft_model(model, DeepLoraConfig(r=RANK, target_modules="all-linear"))
        optimizer = torch.optim.AdamW(deep_lora_parameter_groups(adapted, lr=1e-3), fused=True)
    else:
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"))
        trainable = [one for one in adapted.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss(adapted).backward()
        optimizer.step()

    return step


def compare(make: Callable[[bool], Callable[[], None]], repeats: int) -> float:
    """Return the time of a Deep LoRA step over that of a LoRA step."""
    times = medians({"deep": make(True), "lora": make(False)}, repeats=repeats)
    return times["deep"] / times["lora"]


if __name__ == "__main__":
    minilm = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=2000
    )
    small_vit = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=28, patch_size=7
    )
    tiny = BertConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, vocab_size=100)
    yardstick = "PEFT's LoRA step, same rank and layers"

    def step_on(what: str, make: Callable[[bool], Callable[[], None]], repeats: int, limit: float) -> bool:
        return report(what, yardstick, compare(make, repeats), limit, f"a Deep LoRA step, {what}")

    kept = [
        step_on("BERT of MiniLM's shape, 8 x 32 tokens", lambda d: bert_step(minilm, 8, 32, d), 21, LIMIT),
        step_on("small ViT, 64 images", lambda d: vit_step(small_vit, 64, d), 41, LIMIT),
        # Of width 64 a step is calls more than arithmetic, and Deep LoRA has more of them: a layer multiplies its
        # cores, whose product has small products for its gradients too, and the optimizer has three tensors for two.
        # That many calls cost the same however narrow the layer, so this line may miss the limit the wide ones keep.
        step_on("BERT of width 64, 8 x 16 tokens", lambda d: bert_step(tiny, 8, 16, d), 301, LIMIT),
    ]
    finish(kept)
