from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, parallel=True, fastmath=True)
def residual_times(starts, columns, values, left, right, residual, product):
    for row in numba.prange(left.shape[0]):
        product[row] = 0
        for entry in range(starts[row], starts[row + 1]):
            column = columns[entry]
            gap = -values[entry]
            for k in range(left.shape[1]):
                gap += left[row, k] * right[column, k]
            residual[entry] = gap
            for k in range(left.shape[1]):
                product[row, k] += gap * right[column, k]


@numba.njit(cache=True, parallel=True, fastmath=True)
def transposed_times(starts, rows, order, residual, left, product):
    for column in numba.prange(product.shape[0]):
        product[column] = 0
        for place in range(starts[column], starts[column + 1]):
            gap = residual[order[place]]
            row = rows[place]
            for k in range(left.shape[1]):
                product[column, k] += gap * left[row, k]
