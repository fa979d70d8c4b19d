"""Deep LoRA is known to PEFT as soon as both lowdyn and peft are imported, in either order, and not before.

PEFT finds the classes of an adapter by its name in a table. A folder with a Deep LoRA adapter can be loaded only if
the table knows that name, though the program that loads it may touch nothing of lowdyn but ``import lowdyn``. To
import peft there would cost seconds; so ``import lowdyn`` waits for it instead.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_peft() -> None:
    """Register Deep LoRA with PEFT now if peft is loaded, else when it will be. Imports nothing else."""
    if sys.modules.get("peft") is not None:
        _register()
    elif not any(isinstance(finder, _WaitForPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForPeft())


def _register() -> None:
    # A peft of another version must not break programs that never use it: lowdyn.DeepLoraConfig raises the error.
    with contextlib.suppress(ImportError):
        import_module("lowdyn.lowrank.deep_lora")


class _WaitForPeft(MetaPathFinder):
    """Finds nothing itself: what the finders behind it find of peft is registered with once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((one for one in specs if one is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                with contextlib.suppress(ValueError):
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
