"""Bounds beside what a record derives from singular values: true of every matrix they allow, and of every record."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent, reduce_network
from lowdyn.linalg import principal_angles, random_orthogonal
from lowdyn.networks import MLP
from lowdyn.observe import error_bounds
from lowdyn.observe.summary import bulk_of, ranks
from lowdyn.observe.turning import against_reference, groups_of
from lowdyn.problems import Factorization, low_rank_target
from tests.cases import gaussian, seeded
from tests.known_spectra import values as values_of

pytestmark = pytest.mark.usefixtures("nothing_global_changes")

ROWS, COLUMNS, TOP = 230, 200, 2
DERIVED = ("stable_rank", "bulk_rms", "move_norm", "outside_energy", "numerical_rank", "effective_rank")


# --- the formulas, at errors far larger than rounding


def disturbed(matrix, size, seed):
    noise = gaussian(*matrix.shape, seed=seed)
    return matrix + size * noise / torch.linalg.matrix_norm(noise, 2, keepdim=True)


@given(st.integers(0, 10**6), st.sampled_from([1e-9, 1e-4, 1e-2, 0.3]), st.sampled_from(["flat", "decaying", "low"]))
def test_every_matrix_within_the_bound_on_values_is_within_those_derived_from_it(seed, size, kind):
    matrix = gaussian(3, 9, 7, seed=seed)
    if kind != "flat":
        left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
        decay = torch.tensor([1.0, 0.5, 0.2, *[0.0] * 4]) if kind == "low" else 0.3 ** torch.arange(7)
        matrix = left * (values * decay.to(values)).unsqueeze(-2) @ right_t
    found, true = (torch.linalg.svdvals(one) for one in (matrix, disturbed(matrix, size, seed + 1)))
    bound, threshold = torch.full((3,), size, dtype=torch.float64), 9 * torch.finfo(torch.float32).eps
    derived = [ranks(one, 9, 7, torch.float32) for one in (found, true)]
    bounds = error_bounds.of_all_values(found, bound, 2, threshold, *derived[0][1:])
    for name, ours, theirs in zip(("numerical", "stable", "effective"), *derived, strict=True):
        assert ((ours - theirs).abs() <= bounds[f"{name}_rank_bound"]).all(), name
    assert ((bulk_of(found, 2) - bulk_of(true, 2)).abs() <= bounds["bulk_bound"][:, None]).all()
    rms = [one[:, 2:].square().mean(dim=-1).sqrt() for one in (found, true)]
    assert ((rms[0] - rms[1]).abs() <= bounds["bulk_rms_bound"]).all()
    norms = [one.norm(dim=-1) for one in (found, true)]
    shares = [one[:, 2:].square().sum(dim=-1) / norm**2 for one, norm in zip((found, true), norms, strict=True)]
    moved = error_bounds.of_move(found, bound, 2, shares[0])
    assert ((norms[0] - norms[1]).abs() <= moved["move_norm_bound"]).all()
    assert ((shares[0] - shares[1]).abs() <= moved["outside_energy_bound"]).all()
    # As a warm record has it: the norm and the leading values, each with a bound of its own.
    off, bounds = (norms[0] - norms[1]).abs(), (found - true).abs()[:, :2]
    warm = (norms[0], off, found[:, :2], bounds)
    assert ((rms[0] - rms[1]).abs() <= error_bounds.of_bulk_rms(rms[0], *warm, 5)).all()
    assert ((shares[0] - shares[1]).abs() <= error_bounds.of_share_outside(shares[0], *warm)).all()
    stable = error_bounds.of_stable_rank(derived[0][1], norms[0], off, found[:, 0], bounds[:, 0], 7)
    assert ((derived[0][1] - derived[1][1]).abs() <= stable).all()


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [3.0], [0.0]])
def test_what_is_of_zeros_or_of_one_value_alone_has_bounds(values):
    values, nothing = torch.tensor(values, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    numerical, stable, effective = ranks(values, 3, 3, torch.float64)
    bounds = error_bounds.of_all_values(values, 1e-15 * values[0], 0, 1e-15, stable, effective)
    assert numerical == bool(values[0])
    assert all(float(bound) <= 1e-14 for bound in bounds.values()), bounds
    moved = error_bounds.of_move(values, 1e-15 * values[0], 1, nothing)
    assert float(moved["outside_energy_bound"]) <= 1e-14


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 0.05]), st.sampled_from([1, 2, 3]))
def test_singular_vectors_are_turned_by_no_more_than_the_gaps_allow(seed, size, top):
    matrix = gaussian(9, 6, seed=seed)
    pairs = [torch.linalg.svd(one, full_matrices=False) for one in (matrix, disturbed(matrix, size, seed + 1))]
    groups, bound = groups_of(6, top), torch.tensor(size, dtype=torch.float64)
    for open_end, bases in ((True, [pair[0] for pair in pairs]), (False, [pair[2].mT for pair in pairs])):
        single, parts = error_bounds.of_vectors(pairs[0][1], bound, groups, open_end=open_end)
        angles, turns = against_reference(*bases, groups)
        assert (angles <= single + 1e-12).all()
        assert (turns <= parts + 1e-12).all()
        assert (parts[0] < math.pi / 2) == (pairs[0][1][top - 1] - pairs[0][1][top] > 2 * size)


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 0.02]), st.sampled_from([0.0, 0.1, 0.9, 3.0]))
def test_a_rounded_or_skewed_basis_gives_an_angle_within_its_bound(seed, size, turned):
    groups, basis = groups_of(6, 2), random_orthogonal(12, 6, generator=seeded(seed))
    other = torch.linalg.qr(basis + turned * gaussian(12, 6, seed=seed + 1))[0]
    kept = basis + size * gaussian(12, 6, seed=seed + 2) / math.sqrt(12)
    for ours, theirs, bound in zip(
        against_reference(other, kept, groups),
        against_reference(other, basis, groups),
        error_bounds.of_rounded(basis, kept, groups),
        strict=True,
    ):
        assert ((ours - theirs).abs() <= bound + 1e-12).all()
    straight = torch.linalg.qr(kept)[0]
    skewed, right = (principal_angles(one, other[:, :2])[0] for one in (kept, straight))
    assert abs(skewed - right) <= error_bounds.of_skewness(kept) + 1e-12


@pytest.mark.parametrize("eps", [torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps])
def test_the_trace_bounds_what_is_left_over_where_every_rounding_counts_against_it(eps):
    values = torch.tensor([3.0, 2.0, 1.0, 3e-3], dtype=torch.float64)
    spread, slack = 33 * eps, 28 * eps
    for norm_off in (-spread, spread):
        norm = float(values.norm()) / (1 + norm_off)
        ritz = (values[:3] / norm + slack).square()
        true = float((values[3] / norm).square())
        assert true <= error_bounds.of_remainder(ritz, spread, slack) < true + 10 * (spread + slack)


def test_nothing_is_claimed_where_rounding_is_large():
    basis = random_orthogonal(40, 30, generator=seeded())
    _, parts = error_bounds.of_rounded(basis, basis + 0.1 * gaussian(40, 30), groups_of(30, 2))
    assert parts[1] == math.pi / 2


# --- every record of a run


def with_spectrum(values, seed=0, shape=(ROWS, COLUMNS)):
    values = torch.as_tensor(values, dtype=torch.float64)
    left, right = (random_orthogonal(d, len(values), generator=seeded(seed + d)) for d in shape)
    return left * values @ right.T


FLAT = gaussian(ROWS, COLUMNS) / math.sqrt(ROWS)
STARTS = {
    "flat": FLAT,
    "spiked": FLAT + with_spectrum([5.0, 4.0]),
    "decaying": with_spectrum(0.8 ** np.arange(COLUMNS)),
    "close": with_spectrum(np.r_[1.0, 1 - 1e-4, 1 - 1.01e-4, np.linspace(0.5, 0.1, COLUMNS - 3)]),
    "closer": with_spectrum(np.r_[1.0, 1 - 1e-9, 0.9, np.linspace(0.5, 0.1, COLUMNS - 3)]),
    "pairs": with_spectrum(np.repeat(np.linspace(1, 0.01, COLUMNS // 2), 2)),
    "low rank": with_spectrum([3.0, 2.0, 1.0]),
    "zero": torch.zeros(ROWS, COLUMNS, dtype=torch.float64),
}
KINDS = [
    *((name, torch.float32, 1.0) for name in STARTS),
    *((name, torch.float64, 1.0) for name in ("spiked", "close", "low rank")),
    ("spiked", torch.bfloat16, 1.0),
    *(("spiked", torch.float32, scale) for scale in (1e-25, 1e25)),
    *(("low rank", torch.float64, scale) for scale in (1e-200, 1e140)),
]


def run_of(start, dtype, scale, steps=5, wide=False):
    """A run of weights: nothing at first, then two directions that grow and noise, at last zeros, where they may be."""
    weight, rise = start, with_spectrum([1.0, 0.7], seed=9)
    yield (scale * weight.mT if wide else scale * weight).to(dtype)
    for step in range(steps):
        weight = weight + 0.1 * step * rise + (1e-3 * step) * gaussian(ROWS, COLUMNS, seed=step) / math.sqrt(ROWS)
        yield (scale * weight.mT if wide else scale * weight).to(dtype)
    yield torch.zeros_like(scale * weight.mT if wide else scale * weight).to(dtype)


def truth(weight, start):
    """What a record holds, by LAPACK's other driver and the definitions; lengths of both are one."""
    left, values, right_t = scipy.linalg.svd(weight.double().numpy(), full_matrices=False, lapack_driver="gesvd")
    moved = scipy.linalg.svd((weight.double() - start[0].double()).numpy(), compute_uv=False, lapack_driver="gesvd")
    found, energy = {"singular_values": values, "move_values": moved[:TOP], "move_norm": 0.0}, 0.0
    if moved[0] > 0:  # in units of the largest: squares may leave the range of float64
        found["move_norm"] = moved[0] * np.linalg.norm(moved / moved[0])
        energy = ((moved[TOP:] / moved[0]) ** 2).sum() / ((moved / moved[0]) ** 2).sum()
    scaled = values / values[0] if values[0] > 0 else values
    shares = scaled[scaled > 0] / scaled.sum() if values[0] > 0 else np.array([1.0])
    found |= {
        "outside_energy": energy,
        "stable_rank": (scaled**2).sum(),
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()) if values[0] > 0 else 0.0,
        "numerical_rank": (scaled > ROWS * torch.finfo(weight.dtype).eps).sum(),
        "bulk": np.quantile(values[TOP:], [0, 0.25, 0.5, 0.75, 1]),
        "bulk_rms": np.sqrt((scaled[TOP:] ** 2).mean()) * (values[0] if values[0] > 0 else 1.0),
    }
    parts = groups_of(len(values), TOP)
    for side, now, then in (("left", left, start[1]), ("right", right_t.T, start[2])):
        turns = np.array([scipy.linalg.subspace_angles(now[:, part], then[:, part])[0] for part in parts])
        cosines = (now * then).sum(axis=0)
        single = np.arctan2(np.linalg.norm(now - then * cosines, axis=0), np.abs(cosines))
        single[parts[1]] = turns[1]
        found |= {f"{side}_angles": single, f"{side}_turn": turns}
    return found


def bound_name(name):
    plural = {"singular_values": "value_bounds", "move_values": "move_bounds"}
    for side in ("left", "right"):
        plural |= {f"{side}_angles": f"{side}_angle_bounds", f"{side}_turn": f"{side}_turn_bounds"}
    return plural.get(name, f"{name}_bound")


def assert_within(record, expected, warm, *, slack=2e-14):
    """Every number of a record is within the bound beside it; ``slack`` is what the truth itself may be off."""
    for name, value in expected.items():
        seen, bound = record[name][0], record[bound_name(name)][0]
        if warm and name in ("singular_values", "left_angles", "right_angles"):
            value = np.r_[value[:TOP], value[-TOP:]]
        known = np.isfinite(seen)
        assert (np.isfinite(np.broadcast_to(bound, seen.shape)) == known).all(), name
        angular = name.endswith(("angles", "turn"))
        # Angles of the truth are off by its rounding over a gap, which is what a record by SVD says of its own.
        allowed = 2 * bound if angular and record["exact"][0] else bound + slack * (1 if angular else np.abs(value))
        scale = expected["singular_values"][0] if name in ("singular_values", "bulk", "bulk_rms") else 0.0
        scale = max(scale, expected["move_norm"] if name.startswith("move") else 0.0)
        error = np.abs(seen - value)
        assert (error[known] <= np.broadcast_to(allowed + slack * scale, seen.shape)[known]).all(), (name, error, bound)


def watch(weights, *, wide=False):
    """Follow a run of weights, hold each record against the truth, and return how many were warm."""
    weights = list(weights)
    rows, columns = weights[0].shape
    model = MLP((columns, rows), generator=seeded(), dtype=weights[0].dtype)
    look, warm = Spectra(top=TOP, tolerance=10.0).begin(model), 0
    left, _, right_t = scipy.linalg.svd(weights[0].double().numpy(), full_matrices=False, lapack_driver="gesvd")
    start, records = (weights[0], left, right_t.T), []
    for step, weight in enumerate(weights):
        model.weights[0].copy_(weight)
        record = values_of(look(step))
        assert_within(record, truth(weight, start), look.compact)
        records.append(record)
        warm += record["exact"][0] == 0
    return warm, records


@pytest.mark.filterwarnings("ignore:the reference spectrum")
@pytest.mark.parametrize(("name", "dtype", "scale"), KINDS)
def test_every_number_of_every_record_is_within_its_bound(name, dtype, scale):
    warm, _ = watch(run_of(STARTS[name], dtype, scale))
    assert warm >= 4


@pytest.mark.filterwarnings("ignore:the reference spectrum")
@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([torch.float32, torch.float64]))
def test_so_is_every_record_of_any_spectrum(seed, decay, dtype):
    values = np.sort(np.random.default_rng(seed).uniform(size=COLUMNS) ** (1 / decay))[::-1].copy()
    watch(run_of(with_spectrum(values, seed), dtype, 1.0, steps=2))


def test_so_is_every_record_of_a_wide_matrix_and_of_one_by_svd():
    warm, _ = watch(run_of(STARTS["spiked"], torch.float32, 1.0, wide=True))
    assert warm >= 4
    short = [weight[:60] for weight in run_of(STARTS["spiked"], torch.float32, 1.0)]
    warm, _ = watch(short)
    assert warm == 0


def test_the_bounds_say_something():
    """Where values stand above the bulk: those of a warm record are some 1e-4 of the numbers, not trivial ones."""
    _, records = watch(run_of(STARTS["spiked"], torch.float32, 1.0))
    record = {name: value[0] for name, value in records[3].items()}
    assert record["exact"] == 0
    assert record["stable_rank_bound"] < 1e-3 * record["stable_rank"]
    assert record["bulk_rms_bound"] < 1e-3 * record["bulk_rms"]
    assert record["move_norm_bound"] < 1e-5 * record["move_norm"]
    assert record["outside_energy_bound"] < 1e-4
    for side in ("left", "right"):
        assert (record[f"{side}_angle_bounds"][:TOP] < 0.01).all()
        assert record[f"{side}_turn_bounds"][0] < 0.01


def exactly(values, left, right):
    """Return the matrix of integers over 128, exact, of these values, and of the vectors of two Hadamard matrices."""
    return torch.from_numpy((left * values) @ right.T / 128)


def turned(vectors, first, second):
    """Return five times the columns of ``vectors``, in integers, two of them turned by arctan 4/3 in their plane."""
    pair = vectors[:, [first, second]]
    vectors = 5 * vectors
    vectors[:, first], vectors[:, second] = pair @ [3, 4], pair @ [-4, 3]
    return vectors


def test_the_bounds_of_a_record_by_svd_hold_without_an_allowance():
    """Of matrices whose values and vectors are known exactly: the truth has no rounding of its own to allow for."""
    left, right = scipy.linalg.hadamard(256)[:, :64], scipy.linalg.hadamard(64)
    first = np.r_[400, 300, 200 - 3 * np.arange(60), 11, 5]
    second = np.r_[480, 330, 210 - 3 * np.arange(60), 13, 6]
    model, angle = MLP((64, 256), generator=seeded(), dtype=torch.float64), math.atan2(4, 3)
    look, records = Spectra(top=TOP, method="exact").begin(model), []
    for weight in (
        exactly(first, left, right),
        exactly(second, left, right),
        exactly(second, turned(left, 1, 5), turned(right, 0, 1)),
    ):
        model.weights[0].copy_(weight)
        records.append({name: value[0] for name, value in values_of(look(len(records))).items()})
    rest, nothing = np.zeros(60), {"left_turn": np.zeros(3), "right_turn": np.zeros(3)}
    nothing |= {"left_angles": np.zeros(64), "right_angles": np.zeros(64)}
    moved = {"move_values": [80, 30], "move_norm": math.sqrt(80**2 + 30**2 + 60 * 100 + 4 + 1)}
    moved |= {"outside_energy": (60 * 100 + 4 + 1) / (80**2 + 30**2 + 60 * 100 + 4 + 1)}
    turns = {"left_turn": [angle, angle, 0], "left_angles": np.r_[0, angle, rest + angle, 0, 0]}
    turns |= {"right_turn": np.zeros(3), "right_angles": np.r_[angle, angle, rest, 0, 0]}
    for record, values, also in zip(
        records, (first, second, 25 * second), (nothing, {**nothing, **moved}, turns), strict=True
    ):
        total, squares = int(values.sum()), values.astype(np.int64) ** 2
        expected = {
            "singular_values": values,
            "bulk": np.quantile(values[TOP:], [0, 0.25, 0.5, 0.75, 1]),
            "bulk_rms": math.sqrt(squares[TOP:].sum() / 62),
            "stable_rank": squares.sum() / squares[0],
            "effective_rank": math.exp(math.fsum(-value / total * math.log(value / total) for value in values)),
            **also,
        }
        for name, value in expected.items():
            error, bound = np.abs(record[name] - value), record[bound_name(name)]
            assert (error <= bound).all(), (name, error, bound)
            assert (bound > 0).all(), name
        assert (record["value_bounds"] < 1e-13 * values[0]).all()
        assert record["numerical_rank"] == 64


def test_a_move_seen_by_svd_is_not_rounded_to_the_weights_own_type():
    # float32 knows W(t) − W(0) to 6e-8 only, of its entries; both are known exactly.
    model, start = MLP((COLUMNS, ROWS), generator=seeded()), gaussian(ROWS, COLUMNS, dtype=torch.float32)
    model.weights[0].copy_(start)
    look = Spectra(top=TOP, tolerance=0.0).begin(model)
    look(0)
    model.weights[0].add_(gaussian(ROWS, COLUMNS, seed=1, dtype=torch.float32))
    record = values_of(look(1))
    true = np.linalg.svd(model.weights[0].double() - start.double(), compute_uv=False)[:TOP]
    assert (np.abs(record["move_values"][0] - true) <= record["move_bounds"][0]).all()
    assert record["move_bounds"].max() < 1e-10


def test_a_reduced_network_has_the_bounds_of_the_full_one():
    problem = Factorization(low_rank_target(20, 20, rank=2, generator=seeded(1)), reduction="sum")
    network = DeepLinearNetwork((20, 20, 20), 0.3, generator=seeded())
    small, options = (
        reduce_network(network, problem),
        {"steps": 40, "record": Spectra(top=2, reference=20), "every": 20},
    )
    ours, full = (gradient_descent(one, problem, Descent(0.02), **options).isel(step=-1) for one in (small, network))
    assert ours.data_vars.keys() == full.data_vars.keys()
    for name in full.data_vars:
        assert ours[name].dims == full[name].dims, name
        if "bound" in name:
            np.testing.assert_array_equal(np.isnan(ours[name]), np.isnan(full[name]), err_msg=name)
            # Of one size: values that are 0 by the reduction are 1e-16 in full.
            np.testing.assert_allclose(ours[name], full[name], rtol=0.05, atol=1e-17, err_msg=name)
