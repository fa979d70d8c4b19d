"""Where a result comes from: the sources it depends on, the versions and the machine that made it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
from collections import deque
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowdyn import __version__

ALWAYS = ("torch", "numpy", "scipy")  # decide the numbers of every experiment
# The name by which it is imported -> the library, which decides the numbers of the experiments that import it.
LIBRARIES = {
    "accelerate": "accelerate",
    "numba": "numba",
    "peft": "peft",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
}
PACKAGES = (*ALWAYS, *LIBRARIES.values(), "xarray", "plotly")


def digest(value: Any) -> str:
    """Return the SHA-256 of ``value`` as canonical JSON.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def source_digest(module: str) -> str:
    """Return the SHA-256 of a module's source and of all of lowdyn that it imports, directly or not.

    >>> source_digest("lowdyn.linalg") == source_digest("lowdyn.linalg")
    True
    """
    sources = {name: path.read_bytes() for name, path in source_files(module).items()}
    return digest({name: hashlib.sha256(source).hexdigest() for name, source in sources.items()})


def source_files(module: str) -> dict[str, Path]:
    """Return the files of ``module`` and of every lowdyn module that it needs, by module name.

    >>> sorted(source_files("lowdyn.linalg"))
    ['lowdyn.arguments', 'lowdyn.linalg']
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # The root package only hands out names of others; its version stands in the results by itself.
        if name in found or name == "lowdyn":
            continue
        found[name] = _file_of(name)
        waiting += imported_modules(found[name])
    return found


def imported_modules(path: Path) -> list[str]:
    """Return the lowdyn modules that a source file imports anywhere in it."""
    names = []
    for node, _ in _statements(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "lowdyn" and _is_module(name)]


@cache
def libraries(module: str) -> tuple[str, ...]:
    """Return which of LIBRARIES the code of ``module`` imports, itself or through the lowdyn modules it takes from.

    Of a package that only hands out names (``from lowdyn.observe import Spectra``) the modules that define them
    count, not all the others. What is imported for types alone does not count.

    >>> libraries("lowdyn.linalg"), libraries("lowdyn.training")
    ((), ('accelerate', 'numba'))
    """
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name == "lowdyn":
            continue
        seen.add(name)
        for target, taken in _imports(_file_of(name)):
            if target.split(".")[0] == "lowdyn":
                waiting.append(_defining(target, taken))
            else:
                found.add(target.split(".")[0])
    return tuple(sorted(library for name, library in LIBRARIES.items() if name in found))


def deciding_versions(module: str) -> dict[str, str]:
    """Return the versions that decide the numbers of ``module``: lowdyn's, torch's …, and those of its libraries."""
    deciding = ("lowdyn", *ALWAYS, *libraries(module))
    return {name: version for name, version in versions().items() if name in deciding}


def _imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name taken from it or None) for each import that is executed."""
    for node, executed in _statements(path.read_text(encoding="utf-8")):
        if executed and isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif executed and isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


@cache
def _statements(source: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Return each import statement of a source, and whether it is executed: those for types alone are not.

    A module is asked for by every claim and experiment that needs it, so what was parsed is kept.
    """
    found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []
    waiting: deque[tuple[ast.AST, bool]] = deque([(ast.parse(source), True)])
    while waiting:
        node, executed = waiting.popleft()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, executed))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += ((child, False) for child in node.body)
            waiting += ((child, executed) for child in node.orelse)
        else:
            waiting += ((child, executed) for child in ast.iter_child_nodes(node))
    return found


def _defining(module: str, name: str | None) -> str:
    """Return the module that defines a name: ``module``, one of that name below it, or where it takes it from."""
    if name is None:
        return module
    if _is_module(f"{module}.{name}"):
        return f"{module}.{name}"
    path = _file_of(module)
    if path.name != "__init__.py":
        return module
    # Names for types too: that is how a package lists what it imports when it is first asked for.
    for node, _ in _statements(path.read_text(encoding="utf-8")):
        if not isinstance(node, ast.ImportFrom) or not node.module or node.module == module:
            continue
        if any((one.asname or one.name) == name for one in node.names):
            return _defining(node.module, name)
    return module


@cache
def _is_module(name: str) -> bool:
    return _path_of(name) is not None


def _file_of(name: str) -> Path:
    path = _path_of(name)
    if path is None:
        raise ModuleNotFoundError(f"no source of {name}")
    return path


def _path_of(name: str) -> Path | None:
    if name.split(".")[0] != "lowdyn":
        return None
    root = find_spec("lowdyn")
    assert root is not None
    assert root.origin is not None
    stem = Path(root.origin).parent.joinpath(*name.split(".")[1:])
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def versions() -> dict[str, str]:
    """Return the versions of lowdyn, Python and the libraries that decide the numbers."""
    installed = {package: _version_of(package) for package in PACKAGES}
    found = {package: version for package, version in installed.items() if version is not None}
    return {"lowdyn": __version__, "python": platform.python_version(), **found}


@cache
def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, str | int]:
    """Return what the numbers were computed on; nothing that identifies the machine itself."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": device,
    }
