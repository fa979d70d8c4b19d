"""How far singular directions have turned, and where that question has an answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from lowdyn.linalg import principal_angles

Groups = tuple[slice, slice, slice]
Turned = tuple[Tensor, Tensor]  # radians, of single directions (…, index) and of parts (…, 3)


class Reference:
    """Singular vectors of the reference, which of them are defined, and how far, in radians, they may be off.

    ``resolved`` and ``turned`` are each of single directions (…, index) and of parts (…, 3). It says once if some are
    not defined.
    """

    def __init__(self, basis: Tensor, resolved: tuple[Tensor, Tensor], turned: Turned) -> None:
        self.basis, self.resolved, self.turned = basis, resolved, turned
        self.told = False

    PARTS = ("basis", "single", "parts", "single_bound", "part_bound", "told")

    def state(self) -> dict[str, Tensor]:
        """Everything it holds, as tensors."""
        values = (self.basis, *self.resolved, *self.turned, torch.tensor(self.told))
        return dict(zip(self.PARTS, values, strict=True))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Reference:
        """Make again what :meth:`state` came from."""
        basis, single, parts, single_bound, part_bound, told = (state[name] for name in cls.PARTS)
        reference = cls(basis, (single, parts), (single_bound, part_bound))
        reference.told = bool(told)
        return reference

    def news(self) -> bool:
        """Return once whether some directions are not defined."""
        told, self.told = self.told, True
        return not told and not bool(self.resolved[0].all())


def warn_of(references: Iterable[tuple[str, Reference]]) -> None:
    """Warn of the references that are degenerate and have not been warned of."""
    blurred = [key for key, reference in references if reference.news()]
    if blurred:
        warnings.warn(
            f"the reference spectrum of {', '.join(blurred)} is degenerate: singular vectors of equal singular "
            "values are arbitrary, so those angles are NaN; give a later step or the active bases as reference",
            stacklevel=5,
        )


def groups_of(length: int, top: int) -> Groups:
    """Return the places of the leading, middle and trailing singular values."""
    leading = min(top, length)
    trailing = min(top, length - leading)
    return slice(0, leading), slice(leading, length - trailing), slice(length - trailing, length)


def resolved_of(values: Tensor, groups: Groups, *, open_end: bool) -> tuple[Tensor, Tensor]:
    """Which single directions (…, index) and which parts (…, 3) stand apart from their neighbours."""
    infinity = torch.full_like(values[..., :1], torch.inf)
    end = torch.zeros_like(infinity) if open_end else -infinity
    gaps = -torch.diff(values, prepend=infinity, append=end)  # gap i lies above value i
    least = 1e3 * values.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
    apart = gaps > least
    single = apart[..., :-1] & apart[..., 1:]
    parts = torch.stack([apart[..., part.start] & apart[..., part.stop] for part in groups], dim=-1)
    middle = groups[1]
    single[..., middle] = parts[..., 1:2].expand_as(single[..., middle])
    return single, parts


def leading_resolved(values: Tensor, following: float, error: float) -> tuple[Tensor, Tensor]:
    """Return the same of ``values`` (top,) known to ``error``, ``following`` the next: nothing of the other parts."""
    infinity = values.new_full((1,), torch.inf)
    apart = -torch.diff(values, prepend=infinity, append=values.new_tensor([following])) > 10 * error
    return apart[:-1] & apart[1:], torch.stack([apart[-1], *torch.zeros_like(apart[:2])])


def against_reference(basis: Tensor, reference: Tensor, groups: Groups) -> Turned:
    """Return the angle of each direction to its reference (…, index), and of each part (…, 3)."""
    cosines = (basis * reference).sum(dim=-2)
    # The sine is the length of what sticks out, which arccos could not see below 1e-8.
    sines = (basis - reference * cosines.unsqueeze(-2)).norm(dim=-2)
    angles = torch.atan2(sines, cosines.abs())
    turns = torch.stack(
        [_largest(principal_angles(basis[..., part], reference[..., part]), basis) for part in groups], dim=-1
    )
    middle = groups[1]
    angles[..., middle] = turns[..., 1:2].expand_as(angles[..., middle])
    return angles, turns


def against_active(basis: Tensor, active: Tensor, groups: Groups) -> Turned:
    """Return the same against orthonormal bases of active subspaces: outer directions within, middle outside."""
    inside = active.mT @ basis
    outside = basis - active @ inside
    angles = torch.atan2(outside.norm(dim=-2), inside.norm(dim=-2))
    leading, middle, trailing = groups
    # The largest sine and the smallest cosine belong together; near π/2 an arcsine alone would not see 1e-8.
    sine = _largest(torch.linalg.svdvals(inside[..., middle]), basis)
    cosine = _largest(torch.linalg.svdvals(outside[..., middle]).flip(-1), basis)
    turns = torch.stack(
        [
            _largest(principal_angles(basis[..., leading], active), basis),
            torch.atan2(sine, cosine),
            _largest(principal_angles(basis[..., trailing], active), basis),
        ],
        dim=-1,
    )
    angles[..., middle] = turns[..., 1:2].expand_as(angles[..., middle])
    return angles, turns


def _largest(angles: Tensor, like: Tensor) -> Tensor:
    return angles[..., 0] if angles.shape[-1] else like.new_zeros(like.shape[:-2])
