"""The three models that the laws of adapters are tested on: tiny, random, in evaluation mode unless trained."""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}


def stack():
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 14), nn.GELU(), nn.Linear(14, 9))


def vit():
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **TINY))


def bert():
    config = BertConfig(
        vocab_size=30,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **TINY,
    )
    return BertForSequenceClassification(config)


# name -> constructor, layers that are adapted, the head kept beside the adapter
MODELS = {
    "stack": (stack, ["0", "2", "4"], None),
    "vit": (vit, ["q_proj", "v_proj", "fc1", "fc2"], ["classifier"]),
    "bert": (bert, ["query", "value", "dense"], ["classifier"]),
}


def base_model(name, dtype=torch.float32):
    """The model `name`, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name][0]().to(dtype).eval()


def inputs_of(name, dtype=torch.float32, samples=5):
    generator = torch.Generator().manual_seed(1)
    if name == "bert":
        return torch.randint(30, (samples, 7), generator=generator)
    shape = (samples, 12) if name == "stack" else (samples, 1, 8, 8)
    return torch.randn(shape, generator=generator).to(dtype)


def output_of(model, inputs):
    result = model(inputs)
    return result if isinstance(result, torch.Tensor) else result.logits
