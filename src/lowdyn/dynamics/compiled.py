"""The inner loop of descent on small matrices, compiled: nothing is allocated, one thread per run, runs in parallel.

numba is imported with this module, which is therefore imported where a reduced network is trained and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowdyn.dynamics.chain import Loop, Part, total_loss
from lowdyn.dynamics.rule import Descent
from lowdyn.problems import LeastSquares

Array = NDArray[np.floating]
MULTIPLE = 4  # sizes are padded with zeros to a multiple of this; zeros stay zeros


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _update(weight, carry, velocity, gradient, rate, momentum, nesterov, decay, decoupled):
    """torch.optim.SGD's step on one number (or AdamW's decay); returns the new weight, carry and velocity.

    On a plateau a weight is rounded the same way at every step, and a core's weights, multiples of the identity at the
    start, all alike: an error that grows with the steps, and that a small start then amplifies when it escapes. The
    ``carry`` keeps what rounding took away (Knuth's TwoSum), so that it does not.
    """
    shrink = 0.0
    if decoupled or momentum == 0.0:
        # 1 − ηλ is rounded as in the torch loop; its distance to 1 is exact.
        shrink = (1.0 - (1.0 - rate * decay)) * weight
    else:
        gradient += decay * weight
    velocity = momentum * velocity + gradient
    move = carry - shrink - rate * (gradient + momentum * velocity if nesterov else velocity)
    moved = weight + move
    back = moved - weight
    return moved, (weight - (moved - back)) + (move - back), velocity


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _descend(
    weights,
    carries,
    velocities,
    inputs,
    targets,
    identity,
    scale,
    scalars,
    carried,
    speeds,
    stretches,
    rates,
    factor_rates,
    rule,
    buffers,
    slopes,
):
    """Run len(rates) updates of one core (L, K, K) and its scalar families (F, L), in place.

    The core follows ½ scale ‖W_L … W_1 X − Y‖², with X, Y (K, K); a family follows ½ scale·stretch (Πρ)².
    """
    momentum, nesterov, decay, decoupled = rule
    depth, size = weights.shape[0], weights.shape[1]
    features, pulled, gradient = buffers[0], buffers[1], buffers[2, 0]
    for step in range(len(rates)):
        if identity:
            features[0, :, :] = weights[0]
        else:
            np.dot(weights[0], inputs, features[0])
        for layer in range(1, depth):
            np.dot(weights[layer], features[layer - 1], features[layer])
        for row in range(size):
            for column in range(size):
                pulled[depth - 1, row, column] = features[depth - 1, row, column] - targets[row, column]
        for layer in range(depth - 1, -1, -1):
            if layer > 0:
                np.dot(weights[layer].T, pulled[layer], pulled[layer - 1])
                np.dot(pulled[layer], features[layer - 1].T, gradient)
            elif identity:
                gradient[:, :] = pulled[0]
            else:
                np.dot(pulled[0], inputs.T, gradient)
            rate = rates[step] * factor_rates[layer]
            for row in range(size):
                for column in range(size):
                    place = layer, row, column
                    weights[place], carries[place], velocities[place] = _update(
                        weights[place],
                        carries[place],
                        velocities[place],
                        scale * gradient[row, column],
                        rate,
                        momentum,
                        nesterov,
                        decay,
                        decoupled,
                    )
        for family in range(len(scalars)):
            product = 1.0
            for layer in range(depth):
                product *= scalars[family, layer]
            for layer in range(depth):
                others = 1.0
                for other in range(depth):
                    if other != layer:
                        others *= scalars[family, other]
                slopes[layer] = scale * stretches[family] * product * others
            for layer in range(depth):
                scalars[family, layer], carried[family, layer], speeds[family, layer] = _update(
                    scalars[family, layer],
                    carried[family, layer],
                    speeds[family, layer],
                    slopes[layer],
                    rates[step] * factor_rates[layer],
                    momentum,
                    nesterov,
                    decay,
                    decoupled,
                )


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _descend_all(
    weights,
    carries,
    velocities,
    inputs,
    targets,
    identity,
    scale,
    scalars,
    carried,
    speeds,
    stretches,
    rates,
    factor_rates,
    rule,
    buffers,
    slopes,
):
    """Run every run's core and scalars (leading dimension of all arrays), each on one thread."""
    for run in numba.prange(len(weights)):
        _descend(
            weights[run],
            carries[run],
            velocities[run],
            inputs[run],
            targets[run],
            identity,
            scale,
            scalars[run],
            carried[run],
            speeds[run],
            stretches[run],
            rates[run],
            factor_rates,
            rule,
            buffers[run],
            slopes[run],
        )


class CompiledLoop(Loop):
    """The state of one call for a reduced network: its core and its scalars, packed into arrays of one size."""

    check_every = 1000  # a look costs as much as some twenty steps

    def __init__(self, parts: Sequence[Part], descent: Descent) -> None:
        super().__init__(parts)
        self.parts = parts
        self.descent = descent
        core = parts[0]
        self.current = list(parts)  # with the problems of the runs still training
        depth = len(core.weights)
        self.factor_rates = np.array(descent.rates_of_factors(depth))
        assert isinstance(core.problem, LeastSquares)  # nothing else is reduced
        inputs = core.problem.inputs
        columns = core.problem.shape[1] if inputs is None else inputs.shape[-1]
        widest = max(columns, *(side for weight in core.weights for side in weight.shape[-2:]))
        size = -(-widest // MULTIPLE) * MULTIPLE
        runs = self.runs or 1
        self.weights = self._packed(core.weights, runs, size)
        self.inputs = self._packed([core.problem.targets if inputs is None else inputs], runs, size)[:, 0]
        self.targets = self._packed([core.problem.targets], runs, size)[:, 0]
        self.scalars = np.stack([self._packed(part.weights, runs, 1)[..., 0, 0] for part in parts[1:]], axis=1)
        stretches = [part.problem.scale / core.problem.scale for part in parts[1:]]
        self.stretches = np.tile(np.array(stretches, dtype=self.weights.dtype), (runs, 1))
        self.velocities, self.speeds = np.zeros_like(self.weights), np.zeros_like(self.scalars)
        self.carries, self.carried = np.zeros_like(self.weights), np.zeros_like(self.scalars)
        self.multiply_adds = runs * size**3
        self._buffer()

    def _buffer(self) -> None:
        runs, depth, size = self.weights.shape[:3]
        self.buffers = np.empty((runs, 3, depth, size, size), dtype=self.weights.dtype)
        self.slopes = np.empty((runs, depth), dtype=self.weights.dtype)

    @staticmethod
    def _packed(matrices: Sequence[Tensor], runs: int, size: int) -> Array:
        """Return (runs, matrices, size, size), each matrix in the upper left corner of zeros."""
        packed = np.zeros((runs, len(matrices), size, size), dtype=matrices[0].numpy().dtype)
        for place, matrix in enumerate(matrices):
            packed[:, place, : matrix.shape[-2], : matrix.shape[-1]] = matrix.numpy()
        return packed

    def advance(self, rates: Sequence[float | Tensor]) -> None:
        """Make one update per learning rate."""
        runs = len(self.weights)
        table = np.empty((runs, len(rates)), dtype=self.weights.dtype)
        for step, rate in enumerate(rates):
            table[:, step] = rate.reshape(-1).numpy() if isinstance(rate, Tensor) else rate
        rule = (self.descent.momentum, self.descent.nesterov, self.descent.weight_decay, self.descent.decoupled)
        core = self.parts[0].problem
        arrays = (self.weights, self.carries, self.velocities, self.inputs, self.targets)
        families = (self.scalars, self.carried, self.speeds, self.stretches)
        settings = (table, self.factor_rates, rule, self.buffers, self.slopes)
        if runs > 1:
            _descend_all(*arrays, core.inputs is None, core.scale, *families, *settings)
        else:
            one, scalars = [array[0] for array in arrays], [array[0] for array in families]
            _descend(
                *one, core.inputs is None, core.scale, *scalars, table[0], *settings[1:3], *(b[0] for b in settings[3:])
            )

    def loss(self, *, last: bool = False) -> Tensor:
        """Return the loss at the present weights, of all parts together; one number, or one per run still training."""
        return total_loss(self.current, self._unpacked())

    def _unpacked(self) -> list[list[Tensor]]:
        """The matrices of every part, as views of the arrays, of the runs still training."""
        views = []
        for place, part in enumerate(self.parts):
            one: list[Tensor] = []
            for layer, weight in enumerate(part.weights):
                rows, columns = weight.shape[-2:]
                array = self.weights[:, layer, :rows, :columns] if place == 0 else self.scalars[:, place - 1, layer]
                view = torch.from_numpy(array.reshape(len(array), rows, columns) if place else array)
                one.append(view if self.runs is not None else view[0])
            views.append(one)
        return views

    def write_back(self) -> None:
        """Bring the network up to date."""
        for part, weights in zip(self.parts, self._unpacked(), strict=True):
            for whole, present in zip(part.weights, weights, strict=True):
                if self.active is None:
                    whole.copy_(present)
                else:
                    whole[self.active] = present

    def _select(self, chosen: Tensor) -> None:
        state = ("weights", "carries", "velocities", "scalars", "carried", "speeds")
        for name in (*state, "inputs", "targets", "stretches"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[chosen.numpy()]))
        self.current = [replace(part, problem=part.problem.select(chosen)) for part in self.current]
        self._buffer()
