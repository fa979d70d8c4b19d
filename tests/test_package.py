"""What `import lowdyn` offers and what it costs."""

import ast
import importlib
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lowdyn


def loaded_by(statement):
    """Names of all modules that a fresh interpreter holds after `statement`."""
    script = f"import sys\ntry:\n    {statement}\nfinally:\n    print('\\nloaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("module", ["lowdyn", "lowdyn.report", "lowdyn.data", "lowdyn.plots", "lowdyn.cli"])
def test_importing_does_not_load_torch(module):
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert not loaded & {"torch", "xarray", "sklearn", "scipy"}


def test_help_does_not_load_torch():
    loaded = loaded_by("import sys; sys.argv = ['lowdyn', '--help']; from lowdyn.cli import main; main()")
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "xarray", "plotly"}


def test_a_module_that_computes_does_load_torch():
    assert "torch" in loaded_by("from lowdyn import Descent")


@pytest.mark.parametrize("name", lowdyn.__all__)
def test_public_names_resolve(name):
    value = getattr(lowdyn, name)
    assert value is getattr(lowdyn, name)
    assert name in dir(lowdyn)
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value)
        assert value is getattr(importlib.import_module(value.__module__), name)


# Of data that is not shipped; what a function with an example makes; what subclasses show.
WITHOUT_EXAMPLE = {
    *("load_ratings", "load_sentence_pairs", "PretrainedViT"),
    *("Family", "Frames", "LeastSquares", "Problem", "SampledNetwork", "SmallNetwork"),
}


PACKAGES = ("networks", "problems", "dynamics", "observe", "recovery", "lowrank", "data", "plots", "report", "training")


@pytest.mark.parametrize("module", ["lowdyn", *(f"lowdyn.{package}" for package in PACKAGES)])
def test_every_public_name_has_an_example(module):
    package = importlib.import_module(module)
    public = {name: getattr(package, name) for name in package.__all__ if name not in WITHOUT_EXAMPLE}
    shown = [one for one in public.values() if inspect.isfunction(one) or inspect.isclass(one)]
    plain = [one for one in shown if not (inspect.isclass(one) and issubclass(one, Exception))]
    assert [one.__name__ for one in plain if ">>>" not in one.__doc__] == []


def test_star_import_gives_the_public_names():
    names = {}
    exec("from lowdyn import *", names)
    assert set(lowdyn.__all__) <= names.keys()


def test_type_checkers_see_what_the_interpreter_sees():
    tree = ast.parse(Path(lowdyn.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {(alias.name, node.module) for node in block.body for alias in node.names} == set(lowdyn._HOMES.items())
    assert set(lowdyn.__all__) == {*lowdyn._HOMES, "__version__"}
    assert Path(lowdyn.__file__).with_name("py.typed").exists()


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"'lowdyn' has no attribute 'Descend'; it offers .*Descent, .*train"):
        lowdyn.Descend  # noqa: B018


def test_version_is_that_of_the_distribution():
    assert lowdyn.__version__ == metadata.version("lowdyn")
