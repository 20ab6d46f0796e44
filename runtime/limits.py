"""What the service accepts at most; apart from the modules that read requests, for the command's options."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a service accepts.

    Bodies take at most ``(2 * requests + workers) * body`` bytes of memory, whatever clients do: the pieces of a body
    and the whole that they are joined into exist at the same time, and a photograph is scored to its end although its
    client has left.
    """

    requests: int = 32
    """Requests being read, waiting or being scored at once; further ones are answered 429."""
    photographs: int = 32
    """Most photographs in one request."""
    body: int = 64 * MIB
    """Most bytes in the body of one request."""
    seconds: float = 60.0
    """Time in which a body must arrive: a slower client would occupy a place for too long."""
