"""Linear regression: W_L … W_1 X = Y, columns are samples."""

from __future__ import annotations

from typing import Any

import torch

from lowdyn.problems.least_squares import LeastSquares, checked_data, checked_scale


class Regression(LeastSquares):
    """½ mean (or sum) of the squares of W_{L:1} X − Y over all entries of Y.

    ``inputs`` X is (d_x, N) and ``targets`` Y is (d_y, N): columns are samples, as in the lecture; either may
    have a leading dimension of runs. ValueError when the numbers of samples differ.

    >>> problem = Regression([[1.0, 2.0]], [[2.0, 4.0]], reduction="sum")
    >>> problem.shape, problem.solution()
    ((1, 1), tensor([[2.0000]], dtype=torch.float64))
    """

    def __init__(self, inputs: Any, targets: Any, reduction: str = "mean") -> None:
        inputs, targets = checked_data("inputs", inputs), checked_data("targets", targets)
        if inputs.shape[-1] != targets.shape[-1]:
            raise ValueError(
                f"inputs {tuple(inputs.shape)} hold {inputs.shape[-1]} samples and targets {tuple(targets.shape)} "
                f"{targets.shape[-1]}; columns are samples, so the last sizes must agree (transpose if rows are)"
            )
        if inputs.ndim == targets.ndim == 3 and inputs.shape[0] != targets.shape[0]:
            raise ValueError(f"inputs hold {inputs.shape[0]} runs and targets {targets.shape[0]}")
        dtype = torch.promote_types(inputs.dtype, targets.dtype)
        super().__init__(inputs.to(dtype), targets.to(dtype), checked_scale(reduction, targets))
