"""Settings of the C library's allocator, so that a long run holds no more than a picture or two per worker.

glibc keeps freed memory in a separate heap for each thread: after decoding and scoring pictures of tens of megabytes,
each worker's heap would stay at its peak size. With other C libraries both functions do nothing.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_ARENA_MAX = -8  # glibc's malloc.h


def use_one_heap() -> None:
    """Let all threads share one heap. For programs, before they start any thread; a library must not call it."""
    _ask("mallopt", _M_ARENA_MAX, 1)


def hand_back() -> None:
    """Return freed memory to the operating system."""
    _ask("malloc_trim", 0)


def _ask(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        found: Any = getattr(ctypes.CDLL(None), function, None)
        if found is not None:
            found(*arguments)
