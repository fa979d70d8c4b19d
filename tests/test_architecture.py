"""The layout of the package, enforced: a module imports only from lines above its own."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lowdyn

ROOT = Path(lowdyn.__file__).parent
ORDER = (
    *("arguments", "numerals", "seeding", "files", "tensor_files", "linalg"),
    *("data", "trajectory", "networks", "problems"),
    *("dynamics", "observe", "weight_files", "inspection", "recovery", "ratings_csv", "lowrank", "peft_hook"),
    *("checkpoints", "progress", "training", "recipes"),
    *("plots", "experiments", "claims", "provenance", "runner", "report", "cli"),
)
VAGUE = {"utils", "util", "misc", "common", "helpers", "base"}
SOURCES = sorted(ROOT.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path.read_text(encoding="utf-8") for path in SOURCES}


def imports(source):
    """Every (module, imported name or None) in a source, also under TYPE_CHECKING and inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def needed(source, known):
    """The lowdyn modules that a source imports: `from lowdyn.data import cifar` needs lowdyn.data.cifar."""
    for module, name in imports(source):
        if module.split(".")[0] == "lowdyn":
            yield f"{module}.{name}" if f"{module}.{name}" in known else module


def violations(module, source, known=frozenset(MODULES)):
    """Imports of a module that the layout does not allow, in words."""
    line = module.split(".")[1]
    for target, name in imports(source):
        if target.startswith("."):
            yield f"{module}: relative import of {target}"
        if target == "lowdyn" and name != "__version__" and f"lowdyn.{name}" not in known:
            yield f"{module}: {name or 'lowdyn'} from the root, which is for users; import it from its module"
    for target in needed(source, known):
        above = ORDER.index(target.split(".")[1]) if target != "lowdyn" else -1
        if above > ORDER.index(line) or (line == "report" and target.split(".")[1] not in ("report", "files")):
            yield f"{module}: {target} is not above it"


def test_every_module_has_a_line_in_the_layout():
    assert {module.split(".")[1] for module in MODULES if module != "lowdyn"} == set(ORDER)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "lowdyn"])
def test_imports_come_from_lines_above(module):
    assert list(violations(module, MODULES[module])) == []


@pytest.mark.parametrize(
    "source",
    [
        "import lowdyn.runner",
        "from lowdyn import runner",
        "from lowdyn import Descent",
        "import lowdyn",
        "from . import claim",
        "def later():\n    from lowdyn.cli import app",
        "if TYPE_CHECKING:\n    from lowdyn.provenance import digest",
    ],
)
def test_the_rule_sees_every_kind_of_import(source):
    assert len(list(violations("lowdyn.claims.some", source))) == 1
    assert list(violations("lowdyn.claims.some", "from lowdyn import __version__\nfrom lowdyn import plots")) == []


def test_the_report_takes_only_the_writing_of_files():
    assert len(list(violations("lowdyn.report.page", "from lowdyn.plots import curves"))) == 1
    assert list(violations("lowdyn.report.page", "from lowdyn.files import replace_atomically")) == []


def test_no_cycles():
    graph = {
        module: {other for other in needed(source, MODULES) if other != "lowdyn"} for module, source in MODULES.items()
    }
    del graph["lowdyn"]  # it hands out names of all others, and runs none of them
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)
    with pytest.raises(CycleError):
        list(TopologicalSorter({**graph, "lowdyn.arguments": {"lowdyn.dynamics.chain"}}).static_order())


def test_modules_are_named_for_what_they_contain():
    assert [name for name in MODULES if VAGUE & set(name.split("."))] == []


def test_modules_are_short():
    lines = {name: len(source.splitlines()) for name, source in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > 300} == {}
