"""Settings of every test: hypothesis draws the same examples on every machine, nothing global may change."""

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.pages import open_browser, page, parsed  # noqa: F401 - fixtures

settings.register_profile("ci", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("ci")


@pytest.fixture
def nothing_global_changes():
    """Fail a test after which a global random generator or torch's number of threads is another one."""
    torch_state, (_, numpy_state, *_), threads = torch.get_rng_state(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.get_num_threads() == threads
