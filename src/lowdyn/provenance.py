"""Where a result comes from: the sources it depends on, the versions and the machine that made it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowdyn import __version__

PACKAGES = ("torch", "numpy", "scipy", "xarray", "scikit-learn", "accelerate", "plotly")


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
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "lowdyn" and _is_module(name)]


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
    found = {"lowdyn": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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
