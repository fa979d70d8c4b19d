"""Digests of sources: they change with what a module runs, and with nothing else."""

import json
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from lowdyn import __version__, provenance
from lowdyn.provenance import (
    deciding_versions,
    digest,
    imported_modules,
    libraries,
    machine,
    source_digest,
    source_files,
    versions,
)

SOURCES = {
    "__init__.py": "__version__ = '1'",
    "top.py": "from lowdyn.pack import thing\n",
    "late.py": "def later():\n    import lowdyn.pack.deep as deep\n    return deep\n",
    "typed.py": "if TYPE_CHECKING:\n    from lowdyn.leaf import Leaf\n",
    "pack/__init__.py": "from lowdyn.pack.deep import thing\n",
    "pack/deep.py": "import numpy\nfrom lowdyn import __version__, leaf\nthing = 1\n",
    "leaf.py": "from lowdyn import circle\n",
    "circle.py": "from lowdyn import leaf\n",
    "unrelated.py": "from lowdyn import top\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package that provenance takes for lowdyn; returns its folder."""
    for name, source in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    spec = ModuleSpec("lowdyn", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(provenance, "find_spec", lambda name: spec)
    forget()
    yield tmp_path
    forget()


def forget():
    provenance._is_module.cache_clear()
    source_digest.cache_clear()
    libraries.cache_clear()


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("circle", {"leaf"}),
        ("late", {"pack.deep", "leaf", "circle"}),
        ("typed", {"leaf", "circle"}),
        ("top", {"pack", "pack.deep", "leaf", "circle"}),
    ],
)
def test_files_of_a_module_are_its_own_and_all_it_imports(package, module, others):
    files = source_files(f"lowdyn.{module}")
    assert files.keys() == {f"lowdyn.{name}" for name in {module, *others}}
    assert all(path.is_relative_to(package) and path.is_file() for path in files.values())


@pytest.mark.parametrize("changed", ["top.py", "pack/__init__.py", "pack/deep.py", "leaf.py", "circle.py"])
def test_digest_changes_with_every_dependency(package, changed):
    before = source_digest("lowdyn.top")
    (package / changed).write_text(SOURCES[changed] + "x = 1\n")
    forget()
    assert source_digest("lowdyn.top") != before


@pytest.mark.parametrize("changed", ["unrelated.py", "late.py", "new.py", "__init__.py"])
def test_digest_stays_when_something_else_changes(package, changed):
    before = source_digest("lowdyn.top")
    (package / changed).write_text(SOURCES.get(changed, "") + "x = 1\n")
    forget()
    assert source_digest("lowdyn.top") == before


def test_digest_sees_a_dependency_that_is_new(package):
    before = source_digest("lowdyn.circle")
    (package / "fresh.py").write_text("")
    (package / "circle.py").write_text(SOURCES["circle.py"] + "from lowdyn import fresh\n")
    forget()
    with_fresh = source_digest("lowdyn.circle")
    (package / "fresh.py").write_text("x = 1")
    forget()
    assert len({before, with_fresh, source_digest("lowdyn.circle")}) == 3


def test_only_modules_count_as_imports(package):
    assert imported_modules(package / "pack" / "deep.py") == ["lowdyn", "lowdyn.leaf"]


@pytest.mark.parametrize("name", ["lowdyn.nowhere", "numpy.linalg", "linalg"])
def test_a_module_that_is_not_of_lowdyn_has_no_files(name):
    with pytest.raises(ModuleNotFoundError, match=name):
        source_files(name)


@pytest.mark.parametrize("module", ["lowdyn.claims.c01_progressive_features"])
def test_what_python_loads_is_what_is_hashed(module):
    """The interpreter itself as oracle. Parent packages of this kind hold a docstring and nothing else."""
    script = f"import sys, {module}; print(*(name for name in sys.modules if name.startswith('lowdyn.')))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    # Compiled loops are imported when a reduced network, or a completion, is trained, and count as well.
    # The package itself is not hashed, nor the hook that it hangs up for peft.
    lazily = {"lowdyn.dynamics.compiled", "lowdyn.problems.lanes", "lowdyn.problems.observed"}
    assert (set(loaded) | lazily) - {"lowdyn.experiments", "lowdyn.claims", "lowdyn.peft_hook"} == source_files(
        module
    ).keys()


def test_an_experiment_does_not_depend_on_how_it_is_shown():
    files = source_files("lowdyn.experiments.evolution")
    assert {"lowdyn.dynamics.descent", "lowdyn.observe.spectra", "lowdyn.linalg", "lowdyn.trajectory"} <= files.keys()
    shown = ("claims", "report", "runner", "cli", "plots", "data")
    assert not [name for name in files if name.split(".")[1] in shown]


LIBRARIES = {
    "pack/__init__.py": "from lowdyn.pack.deep import thing\nfrom lowdyn.pack.wide import other\n",
    "pack/deep.py": "import peft.tuners\nthing = 1\n",
    "pack/wide.py": "from lowdyn.pack.deep import thing as same\ndef later():\n    from sklearn.base import clone\n",
    "own.py": "import transformers as t, scipy\nfrom lowdyn import leaf\n",
    "leaf.py": "import accelerate\n",
    "typed.py": "if TYPE_CHECKING:\n    import peft\n    from lowdyn import own\nelse:\n    import numba\n",
    "thing.py": "from lowdyn.pack import thing\n",
    "other.py": "def later():\n    from lowdyn.pack import other\n",
    "module.py": "from lowdyn.pack import wide\n",
    "whole.py": "import lowdyn.pack\n",
    "lazy/__init__.py": "if TYPE_CHECKING:\n    from lowdyn.leaf import Leaf\nimport peft\n",
    "asked.py": "from lowdyn.lazy import Leaf\n",
    "unknown.py": "from lowdyn.lazy import elsewhere\n",
}


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("own", ("accelerate", "transformers")),
        ("typed", ("numba",)),
        ("thing", ("peft",)),
        ("other", ("peft", "scikit-learn")),
        ("module", ("peft", "scikit-learn")),
        ("whole", ("peft", "scikit-learn")),
        ("asked", ("accelerate",)),
        ("unknown", ("peft",)),
    ],
)
def test_libraries_are_those_of_the_modules_that_define_what_is_imported(package, module, found):
    for name, source in LIBRARIES.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(source)
    forget()
    assert libraries(f"lowdyn.{module}") == found


def test_versions_that_decide_an_experiment():
    always = {"lowdyn", "torch", "numpy", "scipy"}
    assert deciding_versions("lowdyn.linalg").keys() == always
    assert deciding_versions("lowdyn.experiments.evolution").keys() == always | {"numba"}
    adapting = deciding_versions("lowdyn.experiments.adapt_vit").keys()
    installed = versions().keys()
    assert {"accelerate", "peft", "transformers"} & installed <= adapting


def test_digest_of_values():
    assert digest({"a": [1, 2.5], "b": None}) == digest({"b": None, "a": (1, 2.5)})
    assert len({digest(value) for value in (1, 1.0, "1", [1], True, None, {"a": 1}, {"a": 2})}) == 8
    assert len(digest(0)) == 64


def test_versions_name_what_decides_the_numbers(monkeypatch):
    found = versions()
    assert found["lowdyn"] == __version__
    assert found["python"] == platform.python_version()
    assert {"torch", "numpy", "scipy", "xarray"} <= found.keys()
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "not-installed-anywhere"))
    assert versions().keys() == {"lowdyn", "python", "numpy"}


def test_machine_is_described_and_not_identified():
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1
    assert found["threads"] >= 1
    assert platform.node() not in found.values()
