"""Deep LoRA for PEFT: low-rank adapters whose update is a product of three or more factors (Yaras et al. 2024,
arXiv 2406.04112), by PEFT's own functions.

    import lowdyn                                    # registers Deep LoRA with PEFT, before or after peft is imported
    from peft import get_peft_model
    model = get_peft_model(model, lowdyn.DeepLoraConfig(r=8, target_modules="all-linear"))

PEFT offers two ways in. Its LoRA can dispatch to layers of one's own, by an entry made in a configuration object
while it lives: nothing of that is saved, so that ``PeftModel.from_pretrained`` builds ordinary LoRA layers and finds
no weights for them. Or a method can be registered: a name in the tables by which PEFT finds the classes of a
configuration, of its tuner and of its keys. The name is saved with the adapter, and all that PEFT does with an adapter
(save, load, merge, switch, delete, cast) goes through the tuner's class. That is the way taken here. The tables and
the base classes are what every method of PEFT's own is made of, so they outlive its releases; the enumeration of
names, which is closed, is not touched (:mod:`.registration`). What is needed of PEFT is checked there, in one place.
"""

from lowdyn.lowrank.deep_lora.config import DeepLoraConfig
from lowdyn.lowrank.deep_lora.layer import DeepLoraLinear
from lowdyn.lowrank.deep_lora.model import DeepLoraModel
from lowdyn.lowrank.deep_lora.parameter_groups import deep_lora_parameter_groups
from lowdyn.lowrank.deep_lora.registration import register
from lowdyn.lowrank.deep_lora.sharing import export_lora

__all__ = ["DeepLoraConfig", "DeepLoraLinear", "DeepLoraModel", "deep_lora_parameter_groups", "export_lora"]

register(DeepLoraConfig, DeepLoraModel)
