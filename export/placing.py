"""How a model file gets its name: only once it is whole, and with its sha256 and contract beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..runtime.contract import Contract
from ..runtime.digest import digest_path, sha256_of
from ..runtime.output_file import replacing, require_place, write_text_atomically
from ..runtime.signature import signature_path

CONTRACT_ENDING = ".contract.json"
"""Appended to the name of a copy of the contract beside the file, for bindings that cannot read a model's metadata."""


def require_places(out: Path, read: Sequence[Path]) -> None:
    """Check before any work that a model file and what stands beside it can be written over nothing that is read.

    Raises:
        OutputError: see ``require_place``.
    """
    require_place(out, read)  # before its name is made into others: a folder may have none
    for path in _beside(out):
        require_place(path, read)


@contextmanager
def replacing_model(out: Path) -> Iterator[Path]:
    """As ``replacing``; what stood beside a former file goes before the new one gets its name.

    If the command is stopped after that, it would make readers refuse the new file.

    Raises:
        OutputError: as ``replacing``.
    """
    with replacing(out) as temporary:
        yield temporary
        for path in _beside(out):
            path.unlink(missing_ok=True)


def write_beside(out: Path, contract: Contract) -> str:
    """Write the model file's sha256 and its contract beside it; returns the sha256, in hexadecimal.

    Raises:
        OutputError: they cannot be written.
    """
    digest = sha256_of(out)
    write_text_atomically(digest_path(out), f"{digest}  {out.name}\n")
    write_text_atomically(_contract_path(out), contract.to_json() + "\n")
    return digest


def _beside(out: Path) -> tuple[Path, Path, Path]:
    return digest_path(out), _contract_path(out), signature_path(out)


def _contract_path(out: Path) -> Path:
    return out.with_name(out.name + CONTRACT_ENDING)
