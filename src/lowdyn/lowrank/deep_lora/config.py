"""What a Deep LoRA adapter is made of, as PEFT's own functions take and save it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from lowdyn.arguments import checked_count, checked_number
from lowdyn.lowrank.deep_lora.registration import DeepLoraType, PeftConfig


@dataclass
class DeepLoraConfig(PeftConfig):
    """The configuration of Deep LoRA: a low-rank update that is a product of ``depth`` factors (Yaras et al. 2024).

    ``compressed``: ΔW = U (C_L … C_2 C_1) Vᵀ with U (out, r) and V (in, r) orthonormal at the start and trained at
    ``discrepant_ratio`` times the rate of the r x r cores C_l (use :func:`deep_lora_parameter_groups`).
    Otherwise ΔW = W_L … W_1 with W_1 (r, in), r x r factors, W_L (out, r), all trained at one rate. L is ``depth``.
    There is no factor alpha / r.

    Every core (every factor, if not compressed) starts orthogonal at scale ε = ``init_scale``, drawn from ``seed``
    and the layer's name; so ΔW(0) = ε^L times a matrix with orthonormal columns or rows: 1e-9 by default, which is
    small and not zero. ``zero_start`` sets the last core (factor) to zero, and ΔW(0) with it.

    ``target_modules``, ``exclude_modules``, ``modules_to_save``, ``rank_pattern``, ``layers_to_transform`` and
    ``layers_pattern`` are those of ``peft.LoraConfig``; ``dropout`` acts on the input of the update.
    Raises TypeError or ValueError for values that make no adapter.

    >>> DeepLoraConfig(r=8, target_modules="all-linear").depth
    3
    """

    r: int = 8
    depth: int = 3
    init_scale: float = 1e-3
    discrepant_ratio: float = 1e-2
    compressed: bool = True
    zero_start: bool = False
    dropout: float = 0.0
    seed: int = 0
    target_modules: Collection[str] | None = None  # a str is an expression, or "all-linear"
    exclude_modules: Collection[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = DeepLoraType.DEEP_LORA
        checked_count("r", self.r, at_least=1)
        checked_count("depth", self.depth, at_least=2)
        checked_count("seed", self.seed)
        checked_number("init_scale", self.init_scale, at_least=0.0)
        checked_number("discrepant_ratio", self.discrepant_ratio, at_least=0.0)
        checked_number("dropout", self.dropout, at_least=0.0, below=1.0)
        if self.init_scale == 0.0:
            raise ValueError("init_scale is 0, from where no factor can move; for ΔW(0) = 0 pass zero_start=True")
        for pattern, rank in self.rank_pattern.items():
            checked_count(f"rank_pattern[{pattern!r}]", rank, at_least=1)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform was passed with target_modules = {self.target_modules!r}, an expression: "
                "put the layers into the expression, or pass target_modules as a list"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts: pass layers_to_transform too")
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)


def _as_set(names: Any) -> Any:
    return set(names) if isinstance(names, list | tuple) else names
