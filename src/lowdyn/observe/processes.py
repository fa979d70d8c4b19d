"""What the processes of torch.distributed's default group tell each other while they look together."""

from __future__ import annotations

from typing import Any

from torch import distributed, nn


class Elsewhere(Exception):
    """Another process failed, which says why where all raise together."""


def sharded(model: nn.Module) -> bool:
    """Whether a parameter of ``model`` lies spread over processes (FSDP2), whose forward pass then takes all."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def several() -> bool:
    """Whether torch.distributed is at work on more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def told_by_all(value: Any) -> list[Any]:
    """Return what every process passes, in their order; all must call."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def raise_together(failed: Exception | None, layers: list[tuple[str, int]]) -> None:
    """Raise on all processes what ``failed`` on one, ValueError or RuntimeError that names it; all must call.

    ValueError too where they saw other ``layers`` (name, width): those who went on would wait for each other for ever.
    """
    silent = failed is None or isinstance(failed, Elsewhere)
    text = None if silent else str(failed) if isinstance(failed, ValueError) else repr(failed)
    found = told_by_all((text, isinstance(failed, ValueError), layers))
    for process, (reason, is_value, _) in enumerate(found):
        if reason is not None:
            raise (ValueError if is_value else RuntimeError)(f"{reason} (on process {process})") from failed
    for process, (*_, others) in enumerate(found):
        if others != found[0][-1]:
            raise ValueError(
                f"process {process} saw the layers {others}, process 0 {found[0][-1]}; all must see the same"
            )
