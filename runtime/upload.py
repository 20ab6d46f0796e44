"""Reads photographs from a request's body, within bounds and never on disk: one as raw bytes, or many as a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .limits import Limits
from .middleware import TOO_SLOW

FORM = "multipart/form-data"
FIELD = "photographs"
"""The documented name of a form's files; files under other names are accepted as well."""
OCTETS, DICOM = "application/octet-stream", "application/dicom"
RAW = (OCTETS, DICOM, "image/")
"""Media types (or their beginnings) of a single photograph; its actual format is told by its first bytes."""
_OTHER_FIELDS = 16
"""Most form fields that are not files; they are accepted, since some programs send them, and ignored."""


@dataclass(frozen=True)
class SentFile:
    """A file as it was sent; it may turn out not to be a photograph."""

    name: str
    content: bytes


async def read_photographs(request: Request, limits: Limits) -> list[SentFile]:
    """All photographs of a request, at least one, in the order sent.

    Raises:
        HTTPException: 400 an empty body, or an invalid form or one with no or too many files; 408 too slow; 413 too
            large; 415 another media type.
        ClientDisconnect: the client disconnected.
    """
    media_type = request.headers.get("content-type", OCTETS).split(";")[0].strip().lower()
    if media_type != FORM and not media_type.startswith(RAW):
        raise HTTPException(
            415, f"expected {FORM}, image/..., {OCTETS} or {DICOM} as Content-Type, found {media_type[:80]!r}"
        )
    try:
        async with asyncio.timeout(limits.seconds):
            if media_type == FORM:
                return await _form(request, limits)
            content = b"".join([chunk async for chunk in _bounded(request, limits.body)])
    except TimeoutError:
        raise HTTPException(TOO_SLOW, f"expected the whole body within {limits.seconds:g} seconds") from None
    if not content:
        raise HTTPException(400, "expected the bytes of a photograph, found an empty body")
    return [SentFile("photograph", content)]


async def _form(request: Request, limits: Limits) -> list[SentFile]:
    parser = _Form(
        request.headers, _bounded(request, limits.body), max_files=limits.photographs, max_fields=_OTHER_FIELDS
    )
    try:
        form = await parser.parse()
    except MultiPartException as err:
        raise HTTPException(400, f"expected {FORM} of up to {limits.photographs} files: {err.message}") from None
    try:
        files = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if not files:
            raise HTTPException(400, f"expected {FORM} with at least one file, found none")
        return [SentFile(file.filename or f"photograph {n}", await file.read()) for n, file in enumerate(files, 1)]
    finally:
        await form.close()


class _Form(MultiPartParser):
    spool_max_size = 1 << 62
    """Files stay in memory, which the limit on the body bounds: patients' pictures must not be written to /tmp."""
    _ended = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        disposition = part.content_disposition or b""
        if name := _extended_name(disposition):
            part.content_disposition = disposition + b'; filename=""'  # by which the parser knows a file
        super().on_headers_finished()
        if name and part.file is not None:
            part.file.filename = name
        if part.file is None and part.field_name == FIELD:  # it would be silently missing from the answer
            raise MultiPartException(
                f"A part {FIELD!r} came without a filename, so it is not a file. Send one: curl -F {FIELD}=@eye.jpg"
            )

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        try:
            form = await super().parse()
        except UnicodeError:  # some of Python's text encodings cannot decode anything
            raise MultiPartException("Its charset cannot be read. Leave it out: names are UTF-8.") from None
        if not self._ended:  # a file that was cut short would be silently missing from the answer
            await form.close()
            raise MultiPartException("It was cut short: its last boundary is missing. Send it again.")
        return form


def _extended_name(disposition: bytes) -> str:
    """The name under ``filename*`` (RFC 5987); empty if there is none.

    RFC 7578 forbids it in forms, and the parser ignores it, but .NET sends names outside ASCII by it alone: what it
    sends as ``filename`` beside it is coded as in a mail.
    """
    header = Message()
    header["content-disposition"] = disposition.decode("latin-1")
    try:
        params = header.get_params([], "content-disposition")
    except TypeError:  # of names in pieces that do not belong together
        return ""
    for key, value in params:
        if key == "filename" and isinstance(value, tuple) and str(value[0]).lower() in ("utf-8", "iso-8859-1"):
            return collapse_rfc2231_value(value)
    return ""


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    too_large = HTTPException(413, f"expected a body of at most {most} bytes; send fewer photographs at once")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_large
        yield chunk
