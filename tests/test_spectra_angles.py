"""Angles of singular subspaces, against a reference step and against given bases."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from lowdyn import DeepLinearNetwork, Spectra
from lowdyn.linalg import random_orthogonal
from tests.cases import gaussian, seeded
from tests.known_spectra import values, with_values

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def rotation(d, i, j, angle):
    turn = torch.eye(d, dtype=torch.float64)
    turn[i, i] = turn[j, j] = math.cos(angle)
    turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
    return turn


# --- angles against a reference step


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-3, 0.5])
def test_a_turn_of_two_leading_directions_is_seen_on_its_side(angle):
    network = DeepLinearNetwork.from_weights([torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64))])
    look = Spectra(top=2).begin(network)
    look(0)
    network.weights[0].copy_(network.weights[0] @ rotation(5, 0, 1, angle).T)
    seen = values(look(1))
    # An arccosine would see nothing of the first two angles.
    np.testing.assert_allclose(seen["right_angles"], [[angle, angle, 0, 0, 0]], rtol=0, atol=2e-15)
    np.testing.assert_allclose(seen["left_angles"], [[0, 0, 0, 0, 0]], rtol=0, atol=2e-15)
    np.testing.assert_allclose(seen["right_turn"], [[0, 0, 0]], rtol=0, atol=2e-15)  # the plane of the two stays


@pytest.mark.parametrize("angle", [1e-12, 1e-3, 1.0])
def test_a_turn_between_parts_is_seen_in_both(angle):
    network = DeepLinearNetwork.from_weights([torch.diag(torch.tensor([6.0, 5, 4, 3, 2, 1], dtype=torch.float64))])
    look = Spectra(top=2).begin(network)
    look(0)
    network.weights[0].copy_(rotation(6, 1, 3, angle) @ network.weights[0])
    seen = values(look(1))
    np.testing.assert_allclose(seen["left_turn"], [[angle, angle, 0]], rtol=0, atol=3e-15)
    # One by one outside; the middle two share the largest angle of their plane.
    np.testing.assert_allclose(seen["left_angles"], [[0, angle, angle, angle, 0, 0]], rtol=0, atol=3e-15)


def test_angles_are_scipys():
    network = DeepLinearNetwork.from_weights([gaussian(7, 6)])
    look = Spectra(top=2).begin(network)
    look(0)
    before = np.linalg.svd(network.weights[0].numpy(), full_matrices=False)
    network.weights[0].add_(0.3 * gaussian(7, 6, seed=1))
    seen = values(look(1))
    after = np.linalg.svd(network.weights[0].numpy(), full_matrices=False)
    for side, then, now in (("left", before[0], after[0]), ("right", before[2].T, after[2].T)):
        parts = [
            scipy.linalg.subspace_angles(then[:, part], now[:, part]).max()
            for part in (slice(0, 2), slice(2, 4), slice(4, 6))
        ]
        np.testing.assert_allclose(seen[f"{side}_turn"][0], parts, rtol=1e-10)
        single = np.arccos(np.abs((then * now).sum(axis=0)))
        single[2:4] = parts[1]
        np.testing.assert_allclose(seen[f"{side}_angles"][0], single, rtol=1e-10)


def test_angles_do_not_depend_on_the_coordinates():
    start, change = with_values(5.0, 4.0, 2.0, 1.0), 0.2 * gaussian(4, 4, seed=5)
    turned = random_orthogonal(4, 4, generator=seeded(6))
    records = []
    for outer in (torch.eye(4, dtype=torch.float64), turned):
        network = DeepLinearNetwork.from_weights([outer @ start @ outer.T])
        look = Spectra(top=1).begin(network)
        look(0)
        network.weights[0].add_(outer @ change @ outer.T)
        records.append(values(look(1)))
    for name, expected in records[0].items():
        np.testing.assert_allclose(records[1][name], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("top", "angles", "turns"),
    # The turn is of directions 0 and 1: alone with top 1, within the leading plane with top 2 and more.
    [
        (0, [0, 0, 0], [0, 0, 0]),
        (1, [0.1, 0.1, 0], [0.1, 0.1, 0]),
        (2, [0.1, 0.1, 0], [0, 0, 0]),
        (16, [0.1, 0.1, 0], [0, 0, 0]),
    ],
)
def test_top_may_be_nothing_or_everything(top, angles, turns):
    network = DeepLinearNetwork.from_weights([torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))])
    look = Spectra(top=top).begin(network)
    look(0)
    network.weights[0].copy_(rotation(3, 0, 1, 0.1) @ network.weights[0])
    seen = values(look(1))
    np.testing.assert_allclose(seen["left_angles"], [angles], rtol=0, atol=1e-14)
    np.testing.assert_allclose(seen["left_turn"], [turns], rtol=0, atol=1e-14)


def test_the_reference_is_the_first_record_at_or_after_its_step():
    network = DeepLinearNetwork.from_weights([with_values(3.0, 2.0, 1.0)])
    look = Spectra(top=1, reference=5).begin(network)
    early, at, late = (values(look(step)) for step in (0, 6, 9))
    for name in ("right_angles", "left_angles", "right_turn", "left_turn"):
        assert np.isnan(early[name]).all()
        np.testing.assert_allclose(at[name], 0, atol=1e-15)
        np.testing.assert_allclose(late[name], 0, atol=1e-15)


def test_a_degenerate_reference_warns_once_and_gives_no_angle():
    network = DeepLinearNetwork((5, 5, 5), 0.3, generator=seeded())
    look = Spectra(top=1).begin(network)
    with pytest.warns(UserWarning, match=r"W1 left, W1 right, W2 left, W2 right is degenerate: .* a later step"):
        first = values(look(0))
    network.weights[0].copy_(with_values(5.0, 4.0, 3.0, 2.0, 1.0))
    second = values(look(1))
    for record in (first, second):
        np.testing.assert_allclose(record["singular_values"][1], 0.3, rtol=1e-14)
        for side in ("right", "left"):
            assert np.isnan(record[f"{side}_angles"]).all()
            # The five as a whole are what they are; their parts are arbitrary.
            assert np.isnan(record[f"{side}_turn"]).all()


def test_only_the_arbitrary_directions_have_no_angle():
    network = DeepLinearNetwork.from_weights([with_values(5.0, 4.0, 4.0, 2.0, 2.0, 1.0)])
    look = Spectra(top=3).begin(network)
    with pytest.warns(UserWarning, match="degenerate"):
        look(0)
    # The reference is known in directions 0 and 5; the leading three and the trailing three are known as wholes.
    seen = values(look(1))
    assert np.isnan(seen["right_angles"][0]).tolist() == [False, True, True, True, True, False]
    np.testing.assert_allclose(seen["right_turn"], 0, atol=1e-14)


def test_a_degenerate_matrix_of_today_has_no_angle_and_no_warning():
    network = DeepLinearNetwork.from_weights([with_values(3.0, 2.0, 1.0)])
    look = Spectra(top=1).begin(network)
    look(0)
    network.weights[0].copy_(random_orthogonal(3, 3, generator=seeded()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(values(look(1))["left_angles"]).all()


def test_the_null_space_beside_a_zero_is_arbitrary():
    # Of 3 columns in 5 rows, the left vector of the value 0 could be any of a plane; the right one could not.
    matrix = with_values(2.0, 1.0, 0.0, rows=5)
    with pytest.warns(UserWarning, match="W1 left is degenerate"):
        record = values(Spectra(top=1).begin(DeepLinearNetwork.from_weights([matrix]))(0))
    assert np.isnan(record["left_angles"][0]).tolist() == [False, False, True]
    assert not np.isnan(record["right_angles"]).any()


# --- angles against bases


def test_angles_against_active_subspaces():
    # W = diag(5, 4, 3, 2, 1), turned by 0.2 between directions 1 and 2 on the left; active are 0, 1 and 4.
    e, angle, right = torch.eye(5, dtype=torch.float64), 0.2, math.pi / 2
    weight = rotation(5, 1, 2, angle) @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    active = e[:, [0, 1, 4]]
    network = DeepLinearNetwork.from_weights([weight])
    # The middle is 1, 2, 3: direction 1 is nearly active, at a right angle to the complement.
    seen = values(Spectra(top=1, reference={"W1": (active, active)}).begin(network)(0))
    np.testing.assert_allclose(seen["left_turn"], [[0, right, 0]], rtol=0, atol=1e-14)
    # The middle is 2 alone; 3 trails, and lies in the complement.
    seen = values(Spectra(top=2, reference={"W1": (active, active)}).begin(network)(0))
    np.testing.assert_allclose(seen["left_angles"], [[0, angle, angle, right, 0]], rtol=0, atol=1e-14)
    np.testing.assert_allclose(seen["left_turn"], [[angle, angle, right]], rtol=0, atol=1e-14)
    np.testing.assert_allclose(seen["right_angles"], [[0, 0, 0, right, 0]], rtol=0, atol=1e-14)


def test_a_tiny_departure_from_active_subspaces_is_seen():
    e = torch.eye(4, dtype=torch.float64)
    weight = rotation(4, 0, 1, 1e-12) @ torch.diag(torch.tensor([4.0, 3.0, 3.0, 1.0], dtype=torch.float64))
    bases = {"W1": (e[:, [0, 3]], e[:, [0, 3]])}
    # The middle two values are equal, as the theorem says, and still one subspace: no NaN and no warning.
    seen = values(Spectra(top=1, reference=bases).begin(DeepLinearNetwork.from_weights([weight]))(0))
    np.testing.assert_allclose(seen["left_angles"], [[1e-12, 1e-12, 1e-12, 0]], rtol=0, atol=2e-15)
    np.testing.assert_allclose(seen["right_angles"], 0, rtol=0, atol=2e-15)


def known(rows=40, columns=30):
    """A weight of values 3 … 1 and its singular vectors, left and right."""
    left, right = (random_orthogonal(d, columns, generator=seeded(d)) for d in (rows, columns))
    return left * torch.linspace(3, 1, columns, dtype=torch.float64) @ right.T, (left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_to_given_bases_are_those_to_their_spans_within_the_bounds(dtype):
    weight, vectors = known()
    # Oblique to every direction. What float32 makes of them is off by 1e-7, and so is its departure from orthonormal.
    bases = [torch.linalg.qr(one[:, :3] + 0.1 * gaussian(len(one), 3))[0].to(dtype) for one in vectors]
    look = Spectra(top=2, reference={"W1": tuple(bases)}).begin(DeepLinearNetwork.from_weights([weight]))
    seen = values(look(0))
    for side, own, basis in zip(("left", "right"), vectors, bases, strict=True):
        span, spans_complement = np.split(np.linalg.qr(basis.double().numpy(), mode="complete")[0], [3], axis=1)
        parts = (own[:, :2], span), (own[:, 2:-2], spans_complement), (own[:, -2:], span)
        turns = [scipy.linalg.subspace_angles(part.numpy(), other)[0] for part, other in parts]
        singly = [scipy.linalg.subspace_angles(own[:, place, None].numpy(), span)[0] for place in (0, 1, -2, -1)]
        bounds, angles = seen[f"{side}_angle_bounds"][0, [0, 1, -2, -1]], seen[f"{side}_angles"][0, [0, 1, -2, -1]]
        assert (np.abs(seen[f"{side}_turn"][0] - turns) <= seen[f"{side}_turn_bounds"][0]).all()
        assert (np.abs(angles - singly) <= bounds).all()
        assert max(bounds.max(), seen[f"{side}_turn_bounds"].max()) < 1e-11


def test_a_middle_direction_that_is_active_is_at_a_right_angle_within_the_bound():
    weight, vectors = known()
    bases = tuple(one[:, [0, 1, 10]] for one in vectors)
    seen = values(Spectra(top=2, reference={"W1": bases}).begin(DeepLinearNetwork.from_weights([weight]))(0))
    for side in ("left", "right"):
        # An arcsine of what rounding leaves of 1 would be off by 3e-8.
        assert abs(seen[f"{side}_turn"][0, 1] - math.pi / 2) <= seen[f"{side}_turn_bounds"][0, 1] < 1e-11


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (
            torch.eye(5, 2),
            1.1 * torch.eye(3, 2),
            r"columns of reference\['W1'\] \(right\) are not orthonormal: .* 0.21",
        ),
        (torch.ones(5), torch.eye(3, 2), r"reference\['W1'\] \(left\) must be a matrix of basis vectors \(d, k\)"),
        (torch.eye(3, 2), torch.eye(5, 2), r"bases \(out, k\) and \(in, m\) for the weight \(5, 3\), got \(3, 2\) and"),
        (torch.eye(5, 2).expand(4, 5, 2), torch.eye(3, 2), r"for the weight \(5, 3\), got \(4, 5, 2\) and \(3, 2\)"),
    ],
)
def test_what_is_no_basis_of_the_weights_spaces_is_refused(left, right, message):
    network = DeepLinearNetwork((3, 5), generator=seeded())
    with pytest.raises(ValueError, match=message):
        Spectra(reference={"W1": (left, right)}).begin(network)


def test_every_layer_needs_its_bases():
    basis = torch.eye(3, dtype=torch.float64)[:, :1]
    network = DeepLinearNetwork((3, 3, 3), generator=seeded())
    with pytest.raises(ValueError, match=r"no reference basis matches '\^W2\$': .* has W1"):
        Spectra(reference={"W1": (basis, basis)}).begin(network)
