"""Settings of every test: hypothesis draws the same examples on every machine, nothing global may change."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.commands import fakes  # noqa: F401 - fixture
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


@pytest.fixture
def no_data_folder(monkeypatch):
    """Whoever runs the tests may have real data; these know of none."""
    monkeypatch.delenv("LOWDYN_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    """Where a reproduction is to go; not there yet."""
    return tmp_path / "out"


@pytest.fixture
def accelerators():
    """Make Accelerators of any precision: they share one state, which is put back."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    def make(**options):
        AcceleratorState._reset_state()
        GradientState._reset_state()
        return Accelerator(cpu=True, **options)

    yield make
    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="module")
def workers_find_the_fakes():
    """Processes that make runs import the experiments of the tests."""
    with pytest.MonkeyPatch.context() as patched:
        root = str(Path(__file__).parents[1])
        patched.syspath_prepend(root)  # local processes start with this one's path, those of a cluster do not
        patched.setenv("PYTHONPATH", root, prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The folder of real claims run by one process, to compare with."""
    from tests.pooled import finished

    return finished(tmp_path_factory.mktemp("serial") / "out")
