"""How far each number of a record of spectra may be from that of the matrix itself, by what its values may be off.

A record by SVD knows every singular value to one ``bound`` δ: it is exact for W + E, ‖E‖₂ ≤ δ (Weyl). A warm one knows
the leading values to a bound each, and so ‖W‖_F, a sum of squares. What a record derives from these is bounded here, by
the extremes over all matrices that agree with it. Every function works in float64, and takes leading batch dimensions,
but for those of the Ritz values of one matrix; a matrix of zeros has bounds of 0, and where nothing is known the bound
is one that holds of any matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowdyn.observe.summary import length_of
from lowdyn.observe.turning import Groups, Turned

EPS = torch.finfo(torch.float64).eps


def of_all_values(
    values: Tensor, bound: Tensor, top: int, threshold: float, stable: Tensor, effective: Tensor
) -> dict[str, Tensor]:
    """Return the bounds on what is made of all singular ``values`` (…, n), known to ``bound`` (…).

    - ``bulk_bound`` and ``bulk_rms_bound``: δ, as quantiles and the root mean square move by no more than the values
    - ``numerical_rank_bound``: how many values are within δ(1 + threshold) of threshold·σ_1, and so on either side
    - ``stable_rank_bound``: as of :func:`of_stable_rank`, ‖W‖_F being known to √n·δ
    - ``effective_rank_bound``: e^H(e^ΔH − 1), with ΔH = T ln(n − 1) + h(T) for T = nδ/Σσ̂_i, which is at least half of
      Σ abs(p_i − p̂_i), and h the entropy of (T, 1 − T) (Audenaert 2007, arXiv quant-ph/0610146); n beyond T = 1 − 1/n
    """
    count, largest = values.shape[-1], values[..., 0]
    bulk = bound if count > top else torch.full_like(bound, torch.nan)
    near = (values - threshold * values[..., :1]).abs() <= ((1 + threshold) * bound).unsqueeze(-1)
    total = values.sum(dim=-1)
    # One value alone is all of Σσ, whatever it is.
    apart = (count * bound / torch.where(total > 0, total, 1.0)).clamp(max=1.0 if count > 1 else 0.0)
    change = apart * math.log(max(1, count - 1)) - torch.xlogy(apart, apart) - torch.xlogy(1 - apart, 1 - apart)
    entropic = torch.where(apart <= 1 - 1 / count, effective * torch.expm1(change), float(count)).clamp(max=count)
    return {
        "bulk_bound": bulk,
        "bulk_rms_bound": bulk,
        "numerical_rank_bound": torch.where(largest > 0, near.sum(dim=-1), 0).to(values.dtype),
        "stable_rank_bound": of_stable_rank(stable, length_of(values), math.sqrt(count) * bound, largest, bound, count),
        "effective_rank_bound": torch.where(largest > 0, entropic, 0.0),
    }


def of_stable_rank(
    stable: Tensor, norm: Tensor, norm_bound: Tensor, largest: Tensor, bound: Tensor, count: int
) -> Tensor:
    """Return the bound (…) on ‖W‖_F²/σ_1², which is at most ``count``, from those on ‖W‖_F and on σ_1."""
    low = ((norm - norm_bound).clamp(min=0.0) / (largest + bound)).square()
    high = ((norm + norm_bound) / (largest - bound).clamp(min=0.0)).square().clamp(max=count)
    return torch.where(norm > 0, _furthest(stable, low, high), 0.0)


def of_bulk_rms(rms: Tensor, norm: Tensor, norm_bound: Tensor, values: Tensor, bounds: Tensor, count: int) -> Tensor:
    """Return the bound (…) on √((‖W‖_F² − Σ σ_i²)/count), from those on ‖W‖_F and on the leading ``values`` (…, k)."""
    least, most = _held(norm, values, bounds)
    spread = norm_bound / torch.where(norm > 0, norm, 1.0)
    low, high = (1 - spread).clamp(min=0.0).square() - most, (1 + spread).square() - least
    ends = (norm * (end.clamp(min=0.0) / count).sqrt() for end in (low, high))
    return torch.where(norm > 0, _furthest(rms, *ends), 0.0)


def of_share_outside(share: Tensor, norm: Tensor, norm_bound: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """Return the bound (…) on 1 − Σ σ_i²/‖W‖_F², from those on ‖W‖_F and on the leading ``values`` (…, k)."""
    least, most = _held(norm, values, bounds)
    spread = norm_bound / torch.where(norm > 0, norm, 1.0)
    low, high = 1 - most / (1 - spread).clamp(min=0.0).square(), 1 - least / (1 + spread).square()
    return torch.where(norm > 0, _furthest(share, low.clamp(min=0.0), high.clamp(0.0, 1.0)), 0.0)


def _held(norm: Tensor, values: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the most that the leading ``values`` hold of the energy norm²."""
    unit = torch.where(norm > 0, norm, 1.0).unsqueeze(-1)
    low, high = (values - bounds).clamp(min=0.0) / unit, (values + bounds) / unit
    return low.square().sum(dim=-1), high.square().sum(dim=-1)


def of_move(every: Tensor, bound: Tensor, kept: int, share: Tensor) -> dict[str, Tensor]:
    """Return the bounds on ‖M‖_F and on the share of its energy outside the first ``kept`` of ``every`` value (…, n).

    With each value known to ``bound`` δ (…), ‖M‖_F is known to √n·δ, and the norm of the n − kept others to
    √(n − kept)·δ, of which the share is the squared quotient.
    """
    norm, norm_bound = length_of(every), math.sqrt(every.shape[-1]) * bound
    tail, tail_bound = length_of(every[..., kept:]), math.sqrt(max(0, every.shape[-1] - kept)) * bound
    low = ((tail - tail_bound).clamp(min=0.0) / (norm + norm_bound)).square()
    high = ((tail + tail_bound) / (norm - norm_bound).clamp(min=0.0)).square().clamp(max=1.0)
    outside = torch.where(norm > 0, _furthest(share, low, high), 0.0)
    return {"move_norm_bound": norm_bound, "outside_energy_bound": outside}


def of_vectors(values: Tensor, bound: Tensor, groups: Groups, *, open_end: bool) -> Turned:
    """Return how far in radians computed singular vectors (…, n) and the spans of ``groups`` (…, 3) may be turned.

    The first j vectors span a subspace within asin s_j of the true one, s_j = δ/(gap − δ) with the gap between values
    j and j + 1 (Wedin 1972); vectors a + 1 … b span, as the complement of the first a and of those after b, one within
    asin √(s_a² + s_b²). π/2 where the gap is no more than δ. With ``open_end`` a null space follows. The middle
    vectors share what holds of their span.
    """
    infinity = torch.full_like(values[..., :1], torch.inf)
    end = torch.zeros_like(infinity) if open_end else -infinity
    gaps, bound = -torch.diff(values, prepend=infinity, append=end), bound.unsqueeze(-1)
    sines = torch.where(gaps > bound, bound / (gaps - bound), torch.inf)
    single = _angle(sines[..., :-1], sines[..., 1:])
    parts = [
        _angle(sines[..., part.start], sines[..., part.stop])
        if part.start < part.stop
        else torch.zeros_like(sines[..., 0])
        for part in groups
    ]
    middle = groups[1]
    single[..., middle] = parts[1].unsqueeze(-1).expand_as(single[..., middle])
    return single, torch.stack(parts, dim=-1)


def of_rounded(basis: Tensor, kept: Tensor, groups: Groups) -> Turned:
    """Return how far angles to orthonormal ``basis`` (…, d, n) may be off, single and by part, measured to ``kept``.

    The columns differ by ε (of a part, in Frobenius norm). Sines change by at most 2ε + ε², cosines by ε, and angles,
    taken from the smaller of the two, by at most twice that; 5ε while that is small, else π/2.
    """
    apart = (kept.to(basis) - basis).norm(dim=-2)
    parts = torch.stack([apart[..., part].norm(dim=-1) for part in groups], dim=-1)
    single = apart.clone()
    single[..., groups[1]] = parts[..., 1:2].expand_as(single[..., groups[1]])
    return _small(5 * single), _small(5 * parts)


def of_skewness(basis: Tensor) -> Tensor:
    """Return how far the largest angle of the span of ``basis`` (…, d, k), not quite orthonormal, may be off."""
    gram = basis.mT @ basis - torch.eye(basis.shape[-1]).to(basis)
    return _small(2 * torch.linalg.matrix_norm(gram))


def of_remainder(ritz: Tensor, spread: float, slack: float) -> float:
    """Return c ≥ ‖W(I − PPᵀ)‖_F² in units of n², n ≈ ‖W‖_F, from the eigenvalues ``ritz`` (k,) of PᵀWᵀWP/n².

    It is ‖W‖_F²/n² less their sum: a difference, in which every rounding counts in full. n is ‖W‖_F to ``spread`` of
    itself, a root of ``ritz`` is the length of its image to ``slack``, and eigenvalues and sum are in float64.
    """
    held = float((ritz.clamp(min=0.0).sqrt() - slack).clamp(min=0.0).square().sum())
    return max(0.0, (1.0 + spread) ** 2 - held) + len(ritz) * EPS


def of_ritz_vectors(
    values: Tensor, upper: Tensor, residual: Tensor, outside: float, slack: float
) -> tuple[tuple[float, float], tuple[Tensor, Tensor]]:
    """Return the bounds on the angles, left and right, of the span of leading Ritz vectors and of each vector.

    σ_i lies in [values_i − slack, upper_i + slack], upper (top + 1,); ``residual`` (k, top) are columns of the part R
    of AP outside P, each to 2·slack·σ_1, as two products make them, and ``outside`` is c, both as in
    :func:`~lowdyn.observe.enclosure.enclose`; on the left a third product is W's, and its length is known to as much.
    """
    largest = float(upper[0]) + slack
    ritz, above, below = values.square(), (values - slack).clamp(min=0.0).square(), (upper[1:] + slack).square()
    gap, before = ritz - below, torch.cat([values.new_tensor([math.inf]), above[:-1] - ritz[1:]])
    scaled = residual / torch.where(values > 0, values, 1.0)
    weight = math.sqrt(outside)
    errors = (3 * slack * largest**2 / values, values.new_tensor(2 * slack * largest))
    found = []
    for part, factor, error in ((scaled, weight, errors[0]), (residual, 1.0, errors[1])):
        whole = factor * torch.linalg.matrix_norm(part, 2) + error.max()
        single = factor * part.norm(dim=0) + error
        gaps = torch.cat([gap[-1:], torch.minimum(gap, before)])
        sines = torch.cat([whole[None], single.expand_as(values)]) / gaps
        found.append(torch.asin(torch.where(gaps > 0, sines, 1.0).nan_to_num(1.0).clamp(max=1.0)))
    (left, right) = found
    return (float(left[0]), float(right[0])), (left[1:], right[1:])


def _small(angle: Tensor) -> Tensor:
    return torch.where(angle < 0.25, angle, math.pi / 2)


def _angle(*sines: Tensor) -> Tensor:
    return torch.asin(torch.hypot(*sines).clamp(max=1.0))


def _furthest(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return how far from ``value`` the ends of an interval are, at most, and what rounding adds."""
    return torch.maximum(high - value, value - low).clamp(min=0.0) + 4 * EPS * value
