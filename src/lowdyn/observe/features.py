"""The features of a model, layer by layer, in one pass over labelled batches: hooked, pooled, left as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowdyn.arguments import checked_choice
from lowdyn.observe.draws import draws_undone
from lowdyn.observe.matrices import plain_name, select

Batches = Iterable[tuple[Any, Any]]
Pool = Literal["flatten", "mean", "cls"] | Callable[[Tensor], Tensor]
Keep = Callable[[str, Tensor], None]
POOLS = ("flatten", "mean", "cls")


def layer_features(
    model: nn.Module, inputs: Any, layers: str | None = None, *, pool: Pool = "flatten"
) -> dict[str, Tensor]:
    """Run ``model`` on ``inputs`` and return "input" and the chosen outputs, pooled, in the order of the calls.

    ``layers`` and ``pool`` choose as in :func:`layer_metrics`; each is a float64 copy (samples, width).

    >>> list(layer_features(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2), "1"))
    ['input', '1']
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, features: Tensor) -> None:
        # A copy: a layer that works in place would write into what is kept.
        seen[name] = features.to(torch.float64, copy=True)

    with draws_undone(parameter=next(model.parameters(), None)):
        run_observed(model, inputs, keep, layers=layers, pool=pool)
    return seen


def run_observed(
    model: nn.Module,
    inputs: Any,
    keep: Keep,
    *,
    layers: str | None = None,
    pool: Pool = "flatten",
    inputs_of: str | None = None,
) -> Tensor:
    """Run ``model`` on ``inputs`` in eval mode without gradients; hand chosen outputs to ``keep``, return the last.

    ``keep(name, features)`` is called during the forward pass, when the output is there and nothing has been
    written into it: "input" first, then by the order of the calls, ``name#2`` for a second call. The features are
    pooled (samples, width) and share the output's memory where they can. ``inputs_of`` names a module whose
    *input* is shown too, as ``name.input``. A compiled model runs eagerly, since hooks do not fire in its graph.
    """
    parameter = next(model.parameters(), None)
    inputs = checked_inputs(inputs)
    if parameter is not None:
        # A floating input follows the model's dtype; token ids stay whole numbers.
        inputs = inputs.to(parameter.device, parameter.dtype if inputs.is_floating_point() else None)
    keep("input", inputs.flatten(start_dim=1))
    calls: dict[str, int] = {}

    def show(name: str, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        keep(name if calls[name] == 1 else f"{name}#{calls[name]}", pooled(_tensor(output), pool, name))

    with ExitStack() as stack:
        stack.enter_context(_hooks(model, layers, inputs_of, show))
        stack.enter_context(_evaluation(model))
        stack.enter_context(torch.no_grad())
        if any(map(_is_compiled, model.modules())):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        return _tensor(model(inputs.clone()))  # a copy: layers may work in place


def pooled(output: Tensor, pool: Pool, name: str) -> Tensor:
    """Return an output of ``name`` as features (samples, width), by the rule ``pool``.

    >>> tokens = torch.arange(12.0).reshape(1, 3, 4)
    >>> [pooled(tokens, rule, "block")[0, :2].tolist() for rule in ("mean", "cls")]
    [[4.0, 5.0], [0.0, 1.0]]
    """
    if callable(pool):
        features = pool(output)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(output):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"pool made {shape} of {tuple(output.shape)} from {name!r}; it must be (samples, width)")
        return features
    checked_choice("pool", pool, POOLS)
    if pool == "cls" and output.ndim == 3:
        return output[:, 0]
    if pool == "mean" and output.ndim > 2:
        return output.mean(dim=1) if output.ndim == 3 else output.mean(dim=tuple(range(2, output.ndim)))
    return output.flatten(start_dim=1)


def checked_inputs(inputs: Any) -> Tensor:
    """Return a batch's inputs as a tensor (samples, …); ValueError for a single sample or number.

    >>> checked_inputs([[1.0, 2.0]]).shape
    torch.Size([1, 2])
    """
    inputs = torch.as_tensor(inputs)
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be a batch (samples, …), got shape {tuple(inputs.shape)}; add a dimension")
    return inputs


def checked_labels(labels: Any, num_classes: int) -> Tensor:
    """Return labels as int64 (samples,); ValueError unless they are whole numbers in 0 … num_classes − 1."""
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be whole numbers (samples,), got {labels.dtype} {tuple(labels.shape)}")
    labels = labels.to(torch.int64)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"labels must lie in 0 … {num_classes - 1} (num_classes={num_classes}), "
            f"got {int(labels.min())} … {int(labels.max())}"
        )
    return labels


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by its name without wrappers' prefixes; the model itself is "self"."""
    return {plain_name(name) or "self": module for name, module in model.named_modules()}


def _tensor(output: Any) -> Tensor:
    """The output itself, or the first of several; of a classifier's named outputs, the logits."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output[0]


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile wraps the module, or was told to by ``module.compile()``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def _hooks(
    model: nn.Module, layers: str | None, inputs_of: str | None, show: Callable[[str, Any], None]
) -> Iterator[None]:
    modules = plain_modules(model)
    if layers is None:
        names = [
            name
            for name, module in modules.items()
            if next(module.children(), None) is None and getattr(module, "weight", None) is not None
        ]
    else:
        names = list(modules)
    handles = [
        modules[name].register_forward_hook(lambda _module, _inputs, output, name=name: show(name, output))
        for name in select(names, layers, "layer")
    ]
    if inputs_of is not None:
        name = f"{inputs_of}.input"
        handles.append(
            modules[inputs_of].register_forward_pre_hook(
                lambda _module, inputs, named: show(name, (*inputs, *named.values())[0]), with_kwargs=True
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
