"""Looks and loggers that fail are written down, and training goes on."""

import json
import warnings

import numpy as np
import pytest
import torch

from lowdyn import Spectra, Tracker
from tests.tracked import Counter, Failing, model

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def stepped(tracker, steps):
    for _ in range(steps):
        tracker.step()


def test_a_look_that_fails_is_written_down_and_training_goes_on():
    told = []
    tracker = Tracker(model(), Counter(), Failing(2, 3), every=1, on_record=lambda *record: told.append(record))
    with pytest.warns(UserWarning, match="Failing failed at step 2, because RuntimeError: no memory left") as caught:
        stepped(tracker, 4)
    assert len(caught) == 1
    assert tracker.failures == [
        {"step": step, "probe": "Failing", "because": "RuntimeError: no memory left"} for step in (2, 3)
    ]
    trajectory = tracker.trajectory
    assert json.loads(trajectory.attrs["failed"]) == tracker.failures
    assert trajectory["look"].values.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(trajectory["other"], [0, 1, np.nan, np.nan, 4])
    assert [sorted(record) for _, record in told] == [["look", "other"]] * 2 + [["look"]] * 2 + [["look", "other"]]


def test_not_even_a_warning_made_an_error_ends_training():
    tracker = Tracker(model(), Failing(1), every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.step()
    assert len(tracker.failures) == 1


def test_weights_that_are_not_finite_are_a_failed_look():
    network = model()
    tracker = Tracker(network, Spectra(top=1), every=1)
    network.weights[0].fill_(torch.nan)
    with pytest.warns(UserWarning, match="Spectra failed at step 1"):
        tracker.step()
    assert tracker.trajectory["step"].values.tolist() == [0]


def test_a_look_that_suddenly_records_something_else_is_left_out():
    probe = Counter()
    tracker = Tracker(model(), probe, every=1)
    probe.__class__ = type("Counter", (Counter,), {"__call__": lambda self, step: {"new": ((), 1)}})
    with pytest.warns(UserWarning, match=r"this record holds \['new'\]"):
        tracker.step()
    assert tracker.trajectory["look"].values.tolist() == [1]


class Resized(Counter):
    """A vector of two, of three at step 2."""

    def __call__(self, step):
        return {"size": (("place",), [float(step)] * (3 if step == 2 else 2))}


def test_a_look_whose_shape_changes_is_left_out():
    told = []
    tracker = Tracker(model(), Counter(), Resized(), every=1, on_record=lambda *record: told.append(record))
    with pytest.warns(
        UserWarning, match=r"Resized failed at step 2, because ValueError: 'size' is \('place',\) \(3,\)"
    ):
        stepped(tracker, 3)
    np.testing.assert_array_equal(tracker.trajectory["size"][:, 0], [0, 1, np.nan, 3])
    assert [sorted(record) for _, record in told] == [["look", "size"]] * 2 + [["look"], ["look", "size"]]
    again = Tracker(model(), Counter(), Resized(), every=1)
    again.load_state_dict(tracker.state_dict())
    assert again.trajectory.identical(tracker.trajectory)


class Lengthy(Counter):
    """Something else of four by the same name."""

    def __call__(self, step):
        return {"length": (("place",), [0.0] * 4)}


class Refusing:
    """A schedule that fails at step 2."""

    def due(self, step):
        if step == 2:
            raise LookupError("no such step")
        return True


def test_a_schedule_that_fails_is_written_down():
    tracker = Tracker(model(), Counter(), every=Refusing())
    with pytest.warns(UserWarning, match="every failed at step 2, because LookupError: no such step"):
        stepped(tracker, 3)
    assert tracker.trajectory["step"].values.tolist() == [0, 1, 3]
    assert [(one["step"], one["probe"]) for one in tracker.failures] == [(2, "every")]


def test_a_whole_number_of_any_type_is_a_schedule():
    tracker = Tracker(model(), Counter(), every=np.int64(2))
    stepped(tracker, 4)
    assert tracker.trajectory["step"].values.tolist() == [0, 2, 4]


def test_a_logger_that_fails_is_written_down():
    def log(step, record):
        if step == 1:
            raise OSError("disk full")

    tracker = Tracker(model(), Counter(), every=1, on_record=log)
    with pytest.warns(UserWarning, match="on_record failed at step 1, because OSError: disk full"):
        tracker.step()
    assert tracker.trajectory["step"].values.tolist() == [0, 1]


def test_what_is_asked_of_the_user_is_not_swallowed():
    with pytest.raises(RuntimeError, match="no memory"):
        Tracker(model(), Failing(0))
    with pytest.raises(ValueError, match="two probes record look; give one of them a prefix"):
        Tracker(model(), Counter(), Counter())
    with pytest.raises(ValueError, match="budget must be"):
        Tracker(model(), Counter(), budget=2.0)
    with pytest.raises(ValueError, match=r"place.* sizes"):
        Tracker(model(), Resized(), Lengthy())
    tracker = Tracker(model(), Failing(1, error=KeyboardInterrupt), every=1)
    with pytest.raises(KeyboardInterrupt):
        tracker.step()
