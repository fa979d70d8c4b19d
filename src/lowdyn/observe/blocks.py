"""The block form of the law of parsimony, measured on the weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lowdyn.observe.matrices import weight_matrices
from lowdyn.trajectory import Record


@dataclass(frozen=True)
class BlockStructure:
    """Probe: how far each weight W_l is from B_l W̃_l B_{l−1}ᵀ + ρ_l (W_l(0)/ε_l − B_l B_{l−1}ᵀ) (theory §2).

    ``bases`` are B_0 … B_L, as :func:`lowdyn.dynamics.invariant_frames` finds them. The record, in float64,
    over ``layer`` (names):

    - ``off_block``: Frobenius norm of the two blocks that must vanish
    - ``inert_scale``: the multiple ρ of its start that the inert block is nearest to, times ε_l
    - ``inert_spread``: Frobenius norm of what that multiple leaves over
    - ``weight_norm``: largest singular value
    - ``end_to_end_values`` over ``end_to_end_index``: singular values of the product

    >>> from lowdyn import DeepLinearNetwork, Descent, gradient_descent
    >>> from lowdyn.dynamics import invariant_frames
    >>> from lowdyn.problems import Factorization, low_rank_target
    >>> generator = torch.Generator().manual_seed(0)
    >>> problem = Factorization(low_rank_target(12, 12, rank=1, generator=generator), reduction="sum")
    >>> network = DeepLinearNetwork((12, 12, 12), 0.1, generator=generator)
    >>> probe = BlockStructure(invariant_frames(network, problem).bases)
    >>> trajectory = gradient_descent(network, problem, Descent(lr=0.1), steps=50, record=probe, every=25)
    >>> bool(trajectory["off_block"].max() < 1e-12), bool(trajectory["inert_spread"].max() < 1e-12)
    (True, True)
    """

    bases: Sequence[Tensor]

    def begin(self, model: nn.Module) -> BlockLook:
        """Take the inert blocks of the present weights as the start."""
        return BlockLook(model, self.bases)


class BlockLook:
    """Block structure of one model."""

    def __init__(self, model: nn.Module, bases: Sequence[Tensor]) -> None:
        self.readers = weight_matrices(model)
        if len(bases) != len(self.readers) + 1:
            raise ValueError(f"{len(bases)} bases for {len(self.readers)} weights; B_0 … B_L are one more than those")
        if any(weight.ndim != 2 for weight in self._weights()):
            raise ValueError("block structure is of one network at a time; take network.run(i)")
        self.bases = [basis.to(torch.float64) for basis in bases]
        self.starts = [self._blocks(layer, weight)[1] for layer, weight in enumerate(self._weights())]
        # ε_l as the root mean square of the inert singular values; 0 where the complement is empty.
        self.scales = [
            float(start.norm()) / max(1, basis.shape[0] - basis.shape[1]) ** 0.5
            for start, basis in zip(self.starts, self.bases[1:], strict=True)
        ]
        self.coords = {"layer": list(self.readers)}

    def _weights(self) -> list[Tensor]:
        return [read().to(torch.float64) for read in self.readers.values()]

    def _blocks(self, layer: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of the two off-diagonal blocks and the inert block, as a matrix of full size."""
        right, left = self.bases[layer], self.bases[layer + 1]
        onto = left @ (left.mT @ weight)  # rows in the active output space
        from_active = (weight @ right) @ right.mT
        core = (onto @ right) @ right.mT
        off = torch.stack([(onto - core).norm(), (from_active - core).norm()]).norm()
        return off, weight - onto - from_active + core

    def __call__(self, step: int) -> Record:
        """Return the record of the present weights."""
        weights = self._weights()
        rows = []
        for layer, (weight, start, scale) in enumerate(zip(weights, self.starts, self.scales, strict=True)):
            off, inert = self._blocks(layer, weight)
            squared = float(start.square().sum())
            share = float((inert * start).sum()) / squared if squared > 0 else 0.0
            rows.append(
                (
                    float(off),
                    share * scale,
                    float((inert - share * start).norm()),
                    float(torch.linalg.matrix_norm(weight, 2)),
                )
            )
        product = weights[0]
        for weight in weights[1:]:
            product = weight @ product
        columns = np.array(rows).T
        names = ("off_block", "inert_scale", "inert_spread", "weight_norm")
        record: Record = {name: (("layer",), column) for name, column in zip(names, columns, strict=True)}
        return {**record, "end_to_end_values": (("end_to_end_index",), torch.linalg.svdvals(product).cpu().numpy())}
