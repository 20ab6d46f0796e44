"""Many clients at once against a service on this machine, for a limited time, and the answers that each must get."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

BOUNDARY = "the-boundary-of-the-crowd"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JPEG = {"Content-Type": "image/jpeg"}
BUSY = 429


def form(files: Mapping[str, bytes]) -> bytes:
    """A multipart/form-data body with a part for each file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photographs"; filename="{name}"\r\n\r\n'.encode()
        + content
        for name, content in files.items()
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


@dataclass(frozen=True)
class Body:
    """What a client sends, and the answer that it must get."""

    kind: str
    content: bytes
    headers: Mapping[str, str]
    status: int
    states: tuple[str, ...] = ()
    """``status`` of each photograph of the answer."""
    chunked: bool = False
    breaks_off: bool = False
    """Whether the client leaves halfway, without waiting for an answer."""


@dataclass
class Tally:
    """What the clients observed."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    memory: list[int] = field(default_factory=list)
    """Resident memory of the service in bytes, sampled ten times a second."""


def bodies(good: Mapping[str, bytes], limit: int) -> list[Body]:
    """One body of each kind, made from some readable files, for a service that accepts up to ``limit`` bytes."""
    name, content = next(iter(good.items()))
    torn = content[: len(content) // 2]
    large = bytes(limit + 100_000)
    return [
        Body("raw", content, JPEG, 200, ("ok",)),
        Body("form", form(good), FORM, 200, ("ok",) * len(good)),
        Body("mixed form", form({name: content, "torn.jpg": torn}), FORM, 200, ("ok", "error")),
        Body("torn", torn, JPEG, 422, ("error",)),
        Body("no photograph", b"%PDF-1.7 not a photograph", JPEG, 422, ("error",)),
        Body("empty", b"", JPEG, 400),
        Body("no form", b"--wrong\r\n", FORM, 400),
        Body("text", b"hello", {"Content-Type": "text/plain"}, 415),
        Body("oversized", large, JPEG, 413),
        Body("oversized, of unknown length", large, JPEG, 413, chunked=True),
        Body("oversized form", form({"large.tif": large}), FORM, 413),
        Body("breaks off", content, JPEG, 0, breaks_off=True),
    ]


def besiege(port: int, process: int, choices: list[Body], *, clients: int, seconds: float) -> Tally:
    """Let ``clients`` threads send random bodies to 127.0.0.1 for some seconds, and check every answer."""
    tally, lock, end = Tally(), threading.Lock(), time.monotonic() + seconds

    def client(seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < end:
            body = dice.choice(choices)
            try:
                status, problem = _send(port, body)
            except (OSError, http.client.HTTPException) as err:
                status, problem = -1, f"{body.kind}: no answer: {err!r}"
            with lock:
                tally.sent += 1
                tally.answers[body.kind, status] += 1
                if problem:
                    tally.wrong.append(problem)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.memory.append(resident(process))
        time.sleep(0.1)
    return tally


def resident(process: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def _send(port: int, body: Body) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        if body.breaks_off:
            connection.putrequest("POST", "/score")
            connection.putheader("Content-Length", str(len(body.content)))
            connection.endheaders(body.content[: len(body.content) // 2])
            return 0, ""
        content: bytes | Iterator[bytes] = _pieces(body.content) if body.chunked else body.content
        connection.request("POST", "/score", content, dict(body.headers), encode_chunked=body.chunked)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    if response.status == BUSY:
        return BUSY, "" if response.headers["Retry-After"] else f"{body.kind}: 429 without Retry-After"
    states = tuple(row["status"] for row in answer.get("photographs", ()))
    right = (response.status, states) == (body.status, body.states) and (bool(states) or "detail" in answer)
    return response.status, "" if right else f"{body.kind}: expected {body.status}, found {response.status} {answer}"


def _pieces(content: bytes, size: int = 65536) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]
