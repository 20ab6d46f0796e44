"""What the C library's allocator is asked for, so that a long run needs no more than a picture or two a worker.

glibc keeps what is freed, in a heap of its own for every thread: decoding and scoring pictures of tens of megabytes
would leave each worker's heap as large as its largest moment. Elsewhere both functions do nothing.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_ARENA_MAX = -8  # glibc's malloc.h


def use_one_heap() -> None:
    """Let all threads share one heap; for a program to call before it starts any, and not for a library."""
    _ask("mallopt", _M_ARENA_MAX, 1)


def hand_back() -> None:
    """Return to the system what was freed."""
    _ask("malloc_trim", 0)


def _ask(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        found: Any = getattr(ctypes.CDLL(None), function, None)
        if found is not None:
            found(*arguments)
