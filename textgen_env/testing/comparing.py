"""Results of environments as plain values that can be compared, in the tests of anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest


def plain(value: Any) -> Any:
    """Nested tuples, mappings and arrays as lists, dictionaries and numbers, which `==` compares."""
    if isinstance(value, Mapping):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [plain(inside) for inside in value] if isinstance(value, (list, tuple)) else value


def same(ours: Any, theirs: Any) -> bool:
    """Whether two plain values are equal, floats to 1e-4: two copies of a model may round otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == pytest.approx(theirs, rel=0, abs=1e-4, nan_ok=True)
    return bool(ours == theirs)


def largest(value: Any) -> int:
    """The length of the longest list or mapping inside a JSON value."""
    if isinstance(value, (list, tuple, Mapping)):
        inside = value.values() if isinstance(value, Mapping) else value
        return max([len(value), *map(largest, inside)])
    return 0


def slot_infos(infos: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """Gymnasium's dictionary of arrays with `_key` masks, as one dictionary a slot with Python values."""
    slots: list[dict[str, Any]] = [{} for _ in range(n)]
    for key, mask in infos.items():
        if not (key.startswith("_") and key[1:] in infos):
            continue
        column = infos[key[1:]]
        values = slot_infos(column, n) if isinstance(column, Mapping) else column
        assert len(values) == len(mask) == n, f"infos[{key[1:]!r}] has not one entry per slot"
        for slot in np.flatnonzero(mask):
            value = values[slot]
            slots[slot][key[1:]] = value.item() if isinstance(value, np.generic) else value
    return slots
