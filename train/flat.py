"""Nested facts as a flat list, for pages and trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(facts: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a path, whose keys are joined by ``separator``, and the value there."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value
