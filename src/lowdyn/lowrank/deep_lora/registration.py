"""The one place that touches PEFT's tables of methods."""

from __future__ import annotations

from enum import Enum
from typing import Any

try:
    import peft
    from peft import PeftConfig as PeftConfig
    from peft import mapping
    from peft.tuners.tuners_utils import BaseTuner
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Deep LoRA needs peft and transformers, and {error.name} is not installed: pip install 'lowdyn[peft]'"
    ) from error

OLDEST = "0.21"  # the first release in which the class of an adapter, not a closed list, says what is saved
NEWEST_TESTED = "0.21.2"  # newer ones are let in, and looked at here before constraints.txt names them
TABLES = ("CONFIG", "TUNER", "PREFIX")
PREFIX = "deep_lora_"


class DeepLoraType(str, Enum):  # noqa: UP042 - PEFT reads "Class.MEMBER" off str(), as of PeftType
    """The type of Deep LoRA adapters: a name for PEFT's tables, in the form of its own ``PeftType``.

    ``PeftType`` is a closed enumeration of strings. Its tables are dictionaries, and a member of another
    enumeration of strings is as good a key: it equals, and hashes as, the string that stands in
    ``adapter_config.json``. So PEFT's enumeration stays as it is.
    """

    DEEP_LORA = "DEEP_LORA"


def register(config_class: type, model_class: type) -> None:
    """Enter Deep LoRA in PEFT's tables; ImportError, naming both versions, if this peft has other ones."""
    tables: list[Any] = [getattr(mapping, f"PEFT_TYPE_TO_{name}_MAPPING", None) for name in TABLES]
    if not all(isinstance(table, dict) for table in tables) or not hasattr(BaseTuner, "_get_adapter_state_dict"):
        raise ImportError(
            f"Deep LoRA needs peft >= {OLDEST} with its tables of methods, and found peft {peft.__version__}: "
            f"pip install --upgrade peft, or lowdyn if it is the older one (this one was tested up to {NEWEST_TESTED})"
        )
    for table, entry in zip(tables, (config_class, model_class, PREFIX), strict=True):
        table[DeepLoraType.DEEP_LORA] = entry
