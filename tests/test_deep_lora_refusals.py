"""What Deep LoRA refuses or remarks upon, in words that help; and how PEFT comes to know it."""

import re
import subprocess
import sys
import tomllib
from collections import OrderedDict
from pathlib import Path

import peft
import pytest
import torch
from peft import NoMatchingPeftModuleError, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from lowdyn import DeepLoraConfig
from lowdyn.lowrank import export_lora
from lowdyn.lowrank.deep_lora import DeepLoraLinear, DeepLoraModel, registration
from tests.adapted_models import TINY, base_model, inputs_of, output_of
from tests.deep_lora_models import adapted

ROOT = Path(__file__).parents[1]
WIDER = {**TINY, "hidden_size": 20}
IMAGES = {"image_size": 8, "patch_size": 4, "num_channels": 1}


def adapt(base, **options):
    return get_peft_model(base, DeepLoraConfig(**{"r": 3, "target_modules": ["0", "2", "4"], **options}))


# --- configurations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"depth": 1}, "depth must be at least 2, got 1"),
        ({"init_scale": 0.0}, "init_scale is 0, .* pass zero_start=True"),
        ({"init_scale": -1.0}, "init_scale must be at least 0"),
        ({"discrepant_ratio": -0.1}, "discrepant_ratio must be at least 0"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"rank_pattern": {"fc": 0}}, r"rank_pattern\['fc'\] must be at least 1"),
        ({"target_modules": "fc.*", "layers_to_transform": 1}, "layers_to_transform was passed with .* an expression"),
        ({"target_modules": ["fc"], "layers_pattern": "h"}, "pass layers_to_transform too"),
    ],
)
def test_a_configuration_that_makes_no_adapter(options, message):
    with pytest.raises(ValueError, match=message):
        DeepLoraConfig(**options)
    with pytest.raises(TypeError, match="r must be a whole number"):
        DeepLoraConfig(r=2.5)


# --- layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["fc9"], r"decoder\..*", None])
def test_nothing_matched_lists_the_candidates(targets):
    base = base_model("stack")
    with pytest.raises(NoMatchingPeftModuleError, match="linear layers of this model are 0, 2, 4; name some") as caught:
        adapt(base, target_modules=targets)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(NoMatchingPeftModuleError, match=r"q_proj \(2\), k_proj \(2\), .* classifier; name some"):
        adapt(base_model("vit"), target_modules=["query"])
    with pytest.raises(NoMatchingPeftModuleError, match="This model has no linear layer"):
        adapt(nn.Sequential(nn.ReLU()), target_modules=["fc9"])


def test_a_rank_as_large_as_the_layer_names_it_and_leaves_the_model_alone():
    base, inputs = base_model("stack"), inputs_of("stack")
    before = base(inputs)
    with pytest.raises(ValueError, match=r"rank 9 for 4, which has 14 inputs and 9 outputs: .* below 9; .* 'r|exclude"):
        adapt(base, r=9)  # the two layers before it would do
    assert not any(isinstance(module, DeepLoraLinear) for module in base.modules())
    torch.testing.assert_close(base(inputs), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert adapt(base, r=9, rank_pattern={"4": 8}).base_model.model[4].r == {"default": 8}


def test_a_second_adapter_that_fails_leaves_the_first():
    model, inputs = adapt(base_model("stack"), init_scale=0.5), inputs_of("stack")
    before = model(inputs)
    with pytest.raises(ValueError, match="rank 9 for 4"):
        model.add_adapter("other", DeepLoraConfig(r=9, target_modules=["0", "2", "4"]))
    assert list(model.peft_config) == ["default"]
    assert not any("other" in key for key in model.state_dict())
    torch.testing.assert_close(model(inputs), before, rtol=0, atol=0)


def test_layers_that_cannot_be_adapted():
    with pytest.raises(TypeError, match=r"1 is a Conv2d; Deep LoRA adapts nn\.Linear"):
        adapt(nn.Sequential(nn.Linear(5, 5), nn.Conv2d(1, 1, 1)), target_modules=["0", "1"])
    attention = nn.TransformerEncoderLayer(8, 2, 8)  # reads the weight of out_proj, and never calls it
    with pytest.raises(TypeError, match=r"out_proj is a NonDynamicallyQuantizableLinear; .*exclude_modules"):
        adapt(attention, target_modules="all-linear")


def test_few_layers_are_remarked_upon_with_their_share():
    wide = nn.Sequential(*[nn.Linear(5, 5) for _ in range(12)])
    with pytest.warns(UserWarning, match=r"adapts 1 of 12 linear layers \(8%\)"):
        adapt(wide, target_modules=["11"])
    with pytest.warns(UserWarning, match=r"adapts 2 of 3 linear layers \(67%\); 'fc1' of target_modules matched none"):
        adapt(base_model("stack"), target_modules=["0", "2", "fc1"])


@pytest.mark.parametrize(
    ("head", "layers"), [(nn.Linear(5, 3), "body, head"), (base_model("stack"), "body, head.0, head.2, head.4")]
)
def test_a_part_that_is_kept_counts_once_and_under_its_own_name(head, layers):
    model = nn.Sequential(OrderedDict(body=nn.Linear(9, 12), head=head))
    count = layers.count(",") + 1
    match = rf"adapts 1 of {count} linear layers \({1 / count:.0%}\); .* The linear layers of this model are {layers};"
    with pytest.warns(UserWarning, match=match):
        adapt(model, target_modules=["body", "fc1"], modules_to_save=["head"])


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other", "layer", "inputs"),
    [
        ("stack", lambda: nn.Sequential(nn.Linear(10, 16), *base_model("stack")[1:]), "0", (12, 10)),
        ("vit", lambda: ViTForImageClassification(ViTConfig(**IMAGES, **WIDER)), "0.attention.q_proj", (16, 20)),
        (
            "bert",
            lambda: BertForSequenceClassification(BertConfig(vocab_size=30, **WIDER)),
            "0.attention.self.query",
            (16, 20),
        ),
    ],
)
def test_an_adapter_of_another_base_names_the_shapes(name, other, layer, inputs, tmp_path):
    adapted(name).save_pretrained(tmp_path)
    ours, theirs = (re.escape(f"[3, {count}]") for count in inputs)
    message = rf"\.{re.escape(layer)}\.deep_lora_A\..* shape .*{ours}.* the shape in current model is .*{theirs}"
    with pytest.raises(RuntimeError, match=message):
        PeftModel.from_pretrained(other(), tmp_path)


def test_a_deeper_base_misses_weights(tmp_path):
    adapt(base_model("bert"), target_modules=["query"], task_type=TaskType.SEQ_CLS).save_pretrained(tmp_path)
    deeper = BertForSequenceClassification(BertConfig(**{**TINY, "num_hidden_layers": 3}, vocab_size=30))
    with pytest.warns(UserWarning, match=r"missing adapter keys.*layer\.2"):
        PeftModel.from_pretrained(deeper, tmp_path)


def test_only_deep_lora_is_exported(tmp_path):
    model = adapt(base_model("stack"))
    with pytest.raises(ValueError, match="no Deep LoRA adapter 'other'; this model has default"):
        export_lora(model, tmp_path, adapter_name="other")
    with pytest.raises(ValueError, match="no Deep LoRA adapter 'default'; this model has none"):
        export_lora(get_peft_model(base_model("stack"), peft.LoraConfig(target_modules=["0"])), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_place_for_an_update():
    (layer,) = (module for module in adapt(base_model("stack"), target_modules=["0"]).modules() if hasattr(module, "r"))
    with pytest.raises(ValueError, match="0 has no adapter 'other'; it has default"):
        layer.get_delta_weight("other")
    layer.base_layer.weight = nn.Parameter(torch.zeros(16, 12, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"0 has a weight of torch\.int8"):
        layer.merge()


# --- PEFT's tables --------------------------------------------------------------------------------------------


def in_a_new_process(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_lowdyn_is_enough_in_either_order(tmp_path):
    """An adapter is loaded by a program that names nothing of lowdyn but lowdyn; which imports no peft."""
    adapt(nn.Sequential(nn.Linear(5, 5)), target_modules=["0"]).save_pretrained(tmp_path)
    script = f"""
import sys
from importlib.util import find_spec

def load():
    model = peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(5, 5)), {str(tmp_path)!r})
    assert type(model.peft_config["default"]).__name__ == "DeepLoraConfig"
    assert not any("lowdyn" in type(finder).__module__ for finder in sys.meta_path)

import lowdyn
assert not {{"peft", "torch", "transformers"}} & set(sys.modules)
assert find_spec("peft") is not None  # asks, and imports nothing
assert "peft" not in sys.modules
import peft
from torch import nn
load()
assert peft.__spec__.loader is peft.__loader__

for name in [one for one in sys.modules if one.split(".")[0] == "lowdyn"]:
    del sys.modules[name]
for table in vars(peft.mapping).values():
    if isinstance(table, dict):
        table.pop("DEEP_LORA", None)
import lowdyn
load()
"""
    assert in_a_new_process(script) == ""


def test_another_peft_breaks_only_deep_lora(monkeypatch):
    monkeypatch.delattr(peft.mapping, "PEFT_TYPE_TO_PREFIX_MAPPING")
    with pytest.raises(
        ImportError, match=rf"needs peft >= 0\.21 .* found peft {re.escape(peft.__version__)}: .*tested up to"
    ):
        registration.register(DeepLoraConfig, DeepLoraModel)
    script = (
        "import sys, types, lowdyn\n"
        "peft = types.ModuleType('peft'); sys.modules['peft'] = peft\n"  # a peft without anything
        "import importlib; importlib.reload(lowdyn); lowdyn.__version__\n"
        "try:\n    lowdyn.DeepLoraConfig\nexcept ImportError as error:\n    print(type(error).__name__)\n"
    )
    assert in_a_new_process(script) == "ImportError\n"


def test_a_missing_peft_says_what_to_install():
    script = (
        "import sys; sys.modules['peft'] = None\n"
        "import lowdyn\n"
        "try:\n    lowdyn.DeepLoraConfig\nexcept ImportError as error:\n    print(error)\n"
    )
    assert "pip install 'lowdyn[peft]'" in in_a_new_process(script)


def test_the_range_of_versions_is_the_packages():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"peft>={registration.OLDEST}" in extras["peft"]  # and no upper bound


def test_the_newest_tested_version_is_the_one_that_is_installed_for_tests():
    """A bump of the constraint needs a look at lowrank/deep_lora, which depends on PEFT's inner workings."""
    (constraint,) = (line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "peft==" in line)
    assert constraint == f"peft=={registration.NEWEST_TESTED}"


def test_the_name_is_a_key_like_those_of_peft():
    kind = registration.DeepLoraType.DEEP_LORA
    assert kind == "DEEP_LORA"
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING["DEEP_LORA"] is DeepLoraModel
    assert peft.get_peft_config({"peft_type": "DEEP_LORA", "r": 4}).r == 4
    model = adapt(base_model("stack"))
    assert model.get_model_status().peft_types == {"default": "DEEP_LORA"}
    assert model.get_layer_status()[0].available_adapters == ["default"]
    assert output_of(model, inputs_of("stack")).shape == (5, 9)
