"""Where a fit starts: biases, values brought to unit scale, spectral factors, and what one unit of decay is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lowdyn.recovery.biases import Biases
from lowdyn.recovery.objective import Factors, Objective, Penalty
from lowdyn.recovery.observations import Observations, Values
from lowdyn.recovery.spectrum import Spectrum

RIDGE = 8.0  # of biases, per unit of regularization: entries of zero that a bias is held back by


@dataclass(frozen=True, eq=False)
class Start:
    """The objective of observations at unit scale (x − mean) / ``scale``, and the factors that descent starts at."""

    mean: float
    scale: float
    objective: Objective
    factors: Factors
    spectrum: Spectrum

    @classmethod
    def of(
        cls,
        seen: Observations,
        *,
        rank: int,
        depth: int,
        center: str,
        init_scale: float,
        discrepant_ratio: float,
        regularization: float,
        random_state: np.random.RandomState,
    ) -> Start:
        """Return the start of a fit to ``seen``; ``rank`` is clipped at the smaller side."""
        biases = Biases.fit(seen, center, RIDGE * regularization)
        centred = seen.with_values(seen.values - seen.values.dtype.type(biases.mean))
        # Squares of what is of order one neither overflow nor vanish, whatever unit the data have.
        scale = float(np.abs(centred.values).max()) or 1.0
        unit = centred.with_values(centred.values / seen.values.dtype.type(scale))
        biases = Biases(biases.mean, biases.row / scale, biases.column / scale)
        rest = unit.with_values(unit.values - biases.row[unit.rows] - biases.column[unit.columns])
        spectrum = Spectrum.of(rest, min(rank, *seen.shape), random_state)
        objective = Objective(
            unit, len(spectrum.values), discrepant_ratio=discrepant_ratio, trained_biases=center == "bias"
        )
        return cls(biases.mean, scale, objective, Factors.start(spectrum, biases, depth, init_scale), spectrum)

    @property
    def depth(self) -> int:
        """Number of factors."""
        return 2 + len(self.factors.cores)

    def penalty(self, regularization: float) -> Penalty:
        """Return λ and κ: at the level of the spectrum, decay pulls ``regularization`` times as hard as noise does.

        A singular value s of the product costs λ s^(2/L − 1) a unit, and noise offers ``edge`` for it.
        """
        level, edge = self.spectrum.level, self.spectrum.edge
        decay = regularization * edge * level ** (1 - 2 / self.depth) if level > 0 else 0.0
        return Penalty(decay, RIDGE * regularization)

    def apply(self, seen: Observations) -> Observations:
        """Return other observations in the units of this start."""
        return seen.with_values((seen.values - self.mean) / self.scale)

    def grown(self, known: Factors) -> Start:
        """Return this start at the factors of an earlier fit, whose matrix may have had fewer rows and columns.

        ValueError if these have another rank or depth, or belong to a larger matrix.
        """
        ours, theirs = self.factors, known
        new_rows, new_columns = (
            len(one) - len(other) for one, other in ((ours.left, theirs.left), (ours.right, theirs.right))
        )
        if (
            min(new_rows, new_columns) < 0
            or ours.core.shape != theirs.core.shape
            or self.depth != 2 + len(theirs.cores)
        ):
            raise ValueError(
                f"warm_start: the last fit was {_described(theirs)}, this one is {_described(ours)}; rows and columns "
                "may be added, rank and depth must stay. Pass warm_start=False"
            )
        known = known.scaled(1 / self.scale)
        fresh = [ours.row_bias[len(theirs.left) :], ours.column_bias[len(theirs.right) :]]
        grown = Factors(
            _extended(known.left, new_rows),
            known.cores,
            _extended(known.right, new_columns),
            np.concatenate([known.row_bias, fresh[0]]),
            np.concatenate([known.column_bias, fresh[1]]),
        )
        return replace(self, factors=Factors.of([one.astype(ours.left.dtype) for one in grown.arrays()]))


def _described(factors: Factors) -> str:
    (rows, rank), columns = factors.left.shape, len(factors.right)
    return f"{rows} x {columns} with rank {rank} and depth {2 + len(factors.cores)}"


def _extended(factor: Values, by: int) -> Values:
    return np.concatenate([factor, np.zeros((by, factor.shape[1]), factor.dtype)])
