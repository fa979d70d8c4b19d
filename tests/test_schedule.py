import math

import pytest

from lowdyn.observe.schedule import Budget, Every, LogSpaced


@pytest.mark.parametrize("per_decade", [1, 3, 8])
def test_log_spaced_steps_are_the_rounded_powers(per_decade):
    expected = sorted({round(10 ** (place / per_decade)) for place in range(3 * per_decade + 1)})
    assert [step for step in range(1, 1001) if LogSpaced(per_decade).due(step)] == expected


@pytest.mark.parametrize("make", [Every, LogSpaced])
@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_schedules_are_counts(make, steps, error):
    with pytest.raises(error, match="must be"):
        make(steps)


@pytest.mark.parametrize(
    ("share", "error"), [(0, ValueError), (-0.1, ValueError), (1.0, ValueError), ("5%", TypeError)]
)
def test_a_budget_is_a_share(share, error):
    with pytest.raises(error, match="budget must be"):
        Budget(share)


def test_the_first_look_is_paid_off_before_the_second():
    budget = Budget(0.05)
    budget.pay(1.0)
    assert budget.share == math.inf
    assert budget.waiting(0) == 1
    budget.trained = 10.0
    # The second is taken to be as dear: 2 s at a share of 0.05 are 40 s, three times those so far.
    assert budget.waiting(100) == 100
    assert budget.waiting(1000) == 1000
    budget.trained = 39.0
    assert budget.waiting(390) == 10
    budget.trained = 40.0
    assert budget.waiting(400) == 0
    budget.pay(0.1)
    assert budget.share == 1.1 / 40
    # Another like the second would come to 1.2 s of 24 in all, but must be earned by 2 s of its own.
    assert budget.waiting(400) == 20
    budget.trained = 42.0
    assert budget.waiting(420) == 0


def test_the_dearer_of_the_last_two_is_expected():
    budget = Budget(0.5)
    for seconds in (9.0, 1.0, 3.0, 1.0):
        budget.pay(seconds)
    budget.trained = 33.0
    assert budget.waiting(33) == 1  # 14 + 3 of 34
    budget.trained = 34.0
    assert budget.waiting(34) == 0


def test_without_a_budget_nothing_waits():
    budget = Budget(None)
    budget.pay(100.0)
    assert budget.waiting(1) == 0


def test_accounts_are_kept_over_a_resume():
    budget, again = Budget(0.1), Budget(0.1)
    for seconds in (2.0, 1.0, 3.0):
        budget.pay(seconds)
    budget.trained = 50.0
    again.restore(budget.state())
    assert again.state() == budget.state()
    assert again.waiting(10) == budget.waiting(10)
