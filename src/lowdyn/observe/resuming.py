"""A tracker's records and looks as plain tensors, and back: only into a tracker that they are of."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowdyn.trajectory import Look, Probe, Recorder

PLAIN = (str, int, float, bool, type(None))


def settings_of(probe: Probe) -> dict[str, Any]:
    """Return the fields of a probe that is a dataclass, as far as they are numbers, text, truth values or None.

    >>> from lowdyn.observe.schedule import Every
    >>> settings_of(Every(3))
    {'steps': 3}
    """
    if not is_dataclass(probe) or isinstance(probe, type):
        return {}
    held = {field.name: getattr(probe, field.name) for field in fields(probe)}
    return {name: value for name, value in held.items() if isinstance(value, PLAIN)}


def packed(about: Mapping[str, Any], recorders: Sequence[Recorder], looks: Sequence[Look]) -> dict[str, Tensor]:
    """Return ``about``, the records and the states of the looks as tensors by name."""
    records = [recorder.dataset() for recorder in recorders]
    dims = [{str(name): list(map(str, value.dims)) for name, value in part.items()} for part in records]
    text = json.dumps({**about, "dims": dims, "coords": [_coordinates(look) for look in looks]}, default=str)
    # JSON as the bytes of a tensor: one flat mapping of tensors is what every format can hold.
    state = {"about": torch.tensor(list(text.encode()), dtype=torch.uint8)}
    for place, (part, look) in enumerate(zip(records, looks, strict=True)):
        for name in ("step", *part.data_vars):
            state[f"{place}.record.{name}"] = torch.from_numpy(np.array(part[name].values))
        held = look.state_dict() if hasattr(look, "state_dict") else {}
        state |= {f"{place}.look.{name}": value.detach().contiguous().clone() for name, value in held.items()}
    return state


def unpacked(
    state: Mapping[str, Tensor], probes: Sequence[tuple[str, dict[str, Any], Look, Recorder]]
) -> tuple[dict[str, Any], list[Recorder], list[dict[str, Tensor]]]:
    """Return what :func:`packed` was given: about, recorders, and the states of the looks, which are not touched.

    Of each probe, name, settings, look and the records so far are given. ValueError, saying what does not fit, for a
    state of others, of other coordinates, such as another model's layers, of records of other shapes, or of no tracker.
    """
    about, names = _about(state), [name for name, *_ in probes]
    if about["probes"] != names:
        raise ValueError(f"this state is of the probes {about['probes']}, the tracker has {names}")
    recorders, states = [], []
    for place, (name, settings, look, own) in enumerate(probes):
        _compare(f"{name} with", about["settings"][place], settings)
        _compare(f"{name} over", about["coords"][place], json.loads(json.dumps(_coordinates(look), default=str)))
        dims, recorder = about["dims"][place], Recorder(look.coords)
        lacking = [one for one in ("step", *dims) if f"{place}.record.{one}" not in state]
        if lacking:
            raise ValueError(f"this state lacks the records {', '.join(lacking)} of {name}; pass a whole state_dict()")
        columns = {one: state[f"{place}.record.{one}"].cpu().numpy() for one in ("step", *dims)}
        for index, step in enumerate(columns["step"].tolist()):
            recorder.add(step, {one: (tuple(dims[one][1:]), columns[one][index]) for one in dims})
        _compare(f"{name} recording", *({one: part.layout(one) for one in part.names} for part in (recorder, own)))
        recorders.append(recorder)
        prefix = f"{place}.look."
        states.append({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return about, recorders, states


def _about(state: Mapping[str, Tensor]) -> dict[str, Any]:
    needed = ("probes", "settings", "coords", "dims", "steps", "not_before", "failures", "accounts")
    about = json.loads(bytes(state["about"].tolist())) if "about" in state else {}
    lacking = [name for name in needed if name not in about]
    if lacking:
        raise ValueError(
            f"this is no state of a Tracker of this version: it lacks {', '.join(lacking)}, and holds "
            f"{reprlib.repr(list(state))}; pass what its state_dict() returned"
        )
    return about


def _compare(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name in {**there, **here}:
        # As text: NaN is the same NaN.
        told, wanted = (json.dumps(one[name]) if name in one else None for one in (there, here))
        if told != wanted:
            raise ValueError(
                f"this state is of {what} {name}={_shown(there, name)}, the tracker has {_shown(here, name)}"
            )


def _shown(held: Mapping[str, Any], name: str) -> str:
    if name not in held:
        return "something else"
    value = held[name]
    return f"{reprlib.repr(value)} ({len(value)} in all)" if isinstance(value, list) else repr(value)


def _coordinates(look: Look) -> dict[str, Any]:
    coords = xr.Dataset(coords=dict(look.coords)).coords
    return {str(name): value.values.tolist() for name, value in coords.items()}
