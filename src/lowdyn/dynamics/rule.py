"""The step rule of full-batch descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lowdyn.arguments import checked_flag, checked_number


@dataclass(frozen=True)
class Descent:
    """A step rule with torch.optim.SGD's conventions to the letter.

    ``lr`` is a number, a function of the step (0 for the first update), or one number per run for networks that
    train side by side. With weight decay λ the gradient
    is G + λ W, or, ``decoupled``, the weights shrink by 1 − lr λ before the step as in AdamW; the momentum
    buffer is v ← μ v + G, and the update W ← W − lr v (heavy ball) or W − lr (G + μ v) (Nesterov).
    ``factor_rates`` multiplies lr per factor, first layer first: the discrepant learning rate. A factor of rate 0
    stays as it is, to the bit.

    ValueError or TypeError where a value alone shows that it cannot be meant.

    >>> Descent(lr=0.1, momentum=0.9).weight_decay
    0.0
    """

    lr: float | Callable[[int], float] | Sequence[float]
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    factor_rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lr, Sequence | Tensor | np.ndarray) and not isinstance(self.lr, str):
            self._set("lr", tuple(checked_number("every lr", float(rate), at_least=0.0) for rate in self.lr))
        elif not callable(self.lr):
            self._set("lr", checked_number("lr", self.lr, at_least=0.0))
        for name in ("momentum", "weight_decay"):
            self._set(name, checked_number(name, getattr(self, name), at_least=0.0))
        for name in ("nesterov", "decoupled"):
            self._set(name, checked_flag(name, getattr(self, name)))
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov=True needs a momentum above 0, as in torch.optim.SGD")
        if self.factor_rates is not None:
            rates = tuple(checked_number("every factor rate", rate, at_least=0.0) for rate in self.factor_rates)
            self._set("factor_rates", rates)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def rate(self, step: int) -> float | tuple[float, ...]:
        """Return the learning rate of update ``step``, one or one per run; ValueError if a schedule gives no rate."""
        if callable(self.lr):
            return checked_number(f"lr({step})", self.lr(step), at_least=0.0)
        return self.lr if isinstance(self.lr, tuple) else float(self.lr)  # type: ignore[arg-type]

    def rates_of_factors(self, depth: int) -> tuple[float, ...]:
        """Return the multiplier of each of ``depth`` factors; ValueError if ``factor_rates`` has another length."""
        if self.factor_rates is None:
            return (1.0,) * depth
        if len(self.factor_rates) != depth:
            raise ValueError(f"factor_rates has {len(self.factor_rates)} entries, the network {depth} factors")
        return self.factor_rates


@dataclass(frozen=True)
class ScaledDescent(Descent):
    """Scaled gradient descent of two factors (Tong, Ma and Chi 2021, arXiv 2005.08898), fast at any condition number.

    In place of the gradients G_2 (m, k) of W_2 and G_1 (k, n) of W_1 stand G_2 (W_1 W_1ᵀ)⁻¹ and (W_2ᵀ W_2)⁻¹ G_1; the
    rest of the rule is :class:`Descent`'s, and momentum and decay act on what stands there. Their η = 0.5 is half of
    ``stable_lr(problem, 2, scaled=True)``: lr = 0.5 d_y d_x for the mean, whether entries are missing or not. The
    factors must start at full rank, by a spectral start, since the inverse of a small Gram matrix is large.

    >>> from lowdyn import DeepLinearNetwork, gradient_descent
    >>> from lowdyn.problems import Factorization
    >>> net = DeepLinearNetwork.from_weights([[[1.0]], [[1.0]]])
    >>> trajectory = gradient_descent(net, Factorization([[4.0]]), ScaledDescent(lr=0.5), steps=50)
    >>> bool(trajectory["loss"][-1] < 1e-20)
    True
    """
