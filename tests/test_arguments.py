import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lowdyn.arguments import (
    checked_choice,
    checked_count,
    checked_flag,
    checked_generator,
    checked_matrix,
    checked_number,
)

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_count_becomes_an_int(value):
    assert type(checked_count("steps", value)) is int
    assert checked_count("steps", value) == 3


@pytest.mark.parametrize("value", [True, 3.0, "3", None, np.float64(3), np.bool_(True), [3]])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(TypeError, match="steps must be a whole number"):
        checked_count("steps", value)


def test_a_count_has_a_least_value():
    assert checked_count("steps", 0) == 0
    assert checked_count("depth", 1, at_least=1) == 1
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        checked_count("depth", 0, at_least=1)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_a_number_becomes_a_float(value):
    assert type(checked_number("lr", value)) is float
    assert checked_number("lr", value) == 0.5


@pytest.mark.parametrize("value", [True, "0.5", None, 1j, np.array([0.5]), torch.tensor(0.5)])
def test_a_number_is_a_real_number(value):
    with pytest.raises(TypeError, match="lr must be a number"):
        checked_number("lr", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_number_is_finite(value):
    with pytest.raises(ValueError, match="lr must be finite"):
        checked_number("lr", value)


def test_a_number_lies_in_a_half_open_range():
    assert checked_number("momentum", 0, at_least=0, below=1) == 0.0
    with pytest.raises(ValueError, match=r"momentum must be at least 0, got -0\.1"):
        checked_number("momentum", -0.1, at_least=0, below=1)
    with pytest.raises(ValueError, match=r"momentum must be below 1, got 1\.0"):
        checked_number("momentum", 1, at_least=0, below=1)


def test_a_flag_becomes_a_bool():
    assert [checked_flag("nesterov", value) for value in (True, False, np.True_, np.False_)] == [True, False] * 2
    assert type(checked_flag("nesterov", np.True_)) is bool


@pytest.mark.parametrize("value", [1, 0, "no", None, 1.0, np.array([True]), torch.tensor(True)])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match="nesterov must be True or False, got "):
        checked_flag("nesterov", value)


def test_a_choice_is_refused_with_the_list():
    assert checked_choice("reduction", "sum", ("mean", "sum")) == "sum"
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'max'"):
        checked_choice("reduction", "max", ("mean", "sum"))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[1, 2]], torch.float64),
        (((1.0, 2.0),), torch.float64),
        (np.array([[1, 2]], dtype=np.uint8), torch.float64),
        (np.array([[True, False]]), torch.float64),
        (np.array([[1, 2]], dtype=np.float32), torch.float32),
        (np.array([[1.0, 9.0, 2.0]])[:, ::2], torch.float64),
        (torch.tensor([[1, 2]]), torch.float64),
        (torch.tensor([[1.0, 2.0]], dtype=torch.float16), torch.float16),
    ],
)
def test_a_matrix_keeps_its_precision_and_whole_numbers_become_float64(value, dtype):
    matrix = checked_matrix("target", value)
    assert matrix.dtype == dtype
    assert matrix.shape == (1, 2)


def test_a_tensor_is_not_copied_and_an_array_is():
    tensor, array = torch.ones(2, 2, requires_grad=True), np.ones((2, 2))
    assert checked_matrix("target", tensor).data_ptr() == tensor.data_ptr()
    assert not checked_matrix("target", tensor).requires_grad
    checked_matrix("target", array)[0, 0] = 5
    assert array[0, 0] == 1


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([["a", "b"]], TypeError, "matrix of numbers, got list"),
        (None, TypeError, "matrix of numbers, got NoneType"),
        ([[object()]], TypeError, "matrix of numbers"),
        (np.ones((2, 2)) * 1j, TypeError, "must be real, got torch.complex128"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "must be real"),
        (1.0, ValueError, r"must be a matrix \(rows, columns\), got shape \(\)"),
        ([1.0, 2.0], ValueError, r"got shape \(2,\)"),
        (np.ones((0, 3)), ValueError, r"is empty: shape \(0, 3\)"),
        ([[math.nan, 1.0, math.inf]], ValueError, "holds 2 values that are NaN or infinite out of 3"),
    ],
)
def test_what_is_no_matrix_is_refused(value, error, message):
    with pytest.raises(error, match=f"target .*{message}"):
        checked_matrix("target", value)


@pytest.mark.parametrize("value", [None, 0, np.random.default_rng(0)])
def test_randomness_is_a_torch_generator(value):
    with pytest.raises(TypeError, match="generator must be a torch"):
        checked_generator(value)
