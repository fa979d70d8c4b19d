"""The command in this process, and four fake claims for it to judge, one for each way to end."""

from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from typer.testing import CliRunner

from lowdyn import cli
from lowdyn.claims import claim as claims
from lowdyn.claims.claim import at_most
from lowdyn.experiments.experiment import SCALES, Experiment, Plan


def lowdyn(*arguments):
    """Run the command in this process; whatever it raises besides its exit status is an error of the test."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def refused(*arguments):
    """The one clear line on stderr of a command that ends with status 2."""
    result = lowdyn(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    *usage, line = result.stderr.splitlines()
    assert usage == [] or usage[0].startswith("Usage: ")  # what the parser refuses comes with the usage
    return line


def constant(*, value, generator, images=None):
    return xr.Dataset({"x": ("step", np.full(2, value))}, coords={"step": [0, 1]})


def fail(*, value, generator):
    raise RuntimeError("out of luck")


constant.__module__ = fail.__module__ = "lowdyn.linalg"  # whose source stands for the fakes' own


def fake(name, title, run=constant, limit=1.0, images=()):
    experiment = Experiment(name.lower(), run, dict.fromkeys(SCALES, Plan(({"value": 1.0},))), images)

    def check(datasets):
        return [at_most("value", float(datasets[experiment.name]["x"].max()), limit)]

    texts = dict.fromkeys(("PART", "CLAIM", "SOURCE", "PUBLISHED", "DEVIATION", "DIFFERENCE", "SCALE_NOTE"), "Nothing.")
    shape = {"EXPERIMENTS": (experiment,), "check": check, "draw": lambda _: go.Figure(), "__name__": "lowdyn.files"}
    return SimpleNamespace(ID=name, TITLE=title, **texts, **shape)


@pytest.fixture
def fakes(monkeypatch):
    every = (
        fake("C1", "True"),
        fake("C2", "Broken", run=fail),
        fake("C3", "False", limit=0.5),
        fake("C10", "Without data", images=("mnist",)),
    )
    monkeypatch.setattr(claims, "all_claims", lambda: {one.ID: one for one in every})
