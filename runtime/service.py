"""The HTTP service: photographs in, the rows of retina-score's table out as JSON, and the browser page."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .browser_page import add_page, find_page
from .limits import Limits
from .middleware import CLIENT_GONE, RequestLog
from .model import RetinaModel
from .prediction import Scored
from .schema import BINARY, Health, ModelFacts, ScoreQuery, Scores, body_of, refusals_of
from .table import Row, record
from .upload import OCTETS, SentFile, read_photographs
from .versions import own_version

WORKER = "retina-serve"
"""Name prefix of the scoring threads."""
_PIECE = 1 << 18
"""Bytes of a response that are sent at a time."""

Result = TypeVar("Result")


class Scorers:
    """Threads that score one photograph each, in the order of arrival.

    What waits, waits outside the pool, whose queue would keep the photographs of clients that left.
    """

    def __init__(self, model: RetinaModel, number: int) -> None:
        self._model = model
        self._pool = ThreadPoolExecutor(number, thread_name_prefix=WORKER)
        self._free = asyncio.Semaphore(number)

    async def score(self, photographs: Sequence[SentFile], maps: bool) -> list[dict[str, Any]]:
        """The rows of a request's photographs, in the order given."""
        rows = [asyncio.ensure_future(self._score(photograph, maps)) for photograph in photographs]
        try:
            return [await row for row in rows]  # not by asyncio.gather, which keeps them until garbage is collected
        finally:
            for row in rows:  # those that have failed too: asyncio then reports none of them
                row.cancel()

    async def _score(self, photograph: SentFile, maps: bool) -> dict[str, Any]:
        await self._free.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._pool, _score_to_json, self._model, photograph, maps)
        # Only then, also if this is cancelled: the thread scores its photograph to the end.
        running.add_done_callback(lambda _: self._free.release())
        running.add_done_callback(_retrieve)  # which asyncio.shield does not if this is cancelled
        return await asyncio.shield(running)

    def stop(self) -> None:
        self._pool.shutdown(wait=False)


def _retrieve(done: asyncio.Future[dict[str, Any]]) -> None:
    # Or asyncio would report each further failure of a request that has already failed, without the request's id.
    if not done.cancelled():
        done.exception()


class Places:
    """A bounded number of places for requests in progress; a request that finds none is answered 429."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        if self.taken >= self.number:
            raise HTTPException(
                429, f"{self.taken} requests are already in progress: try again in a moment", {"Retry-After": "1"}
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


def create_app(
    model: RetinaModel,
    *,
    workers: int,
    limits: Limits | None = None,
    token: str | None = None,
    page: Path | None = None,
) -> FastAPI:
    """Build the service.

    Args:
        model: shared by all workers.
        workers: photographs scored at once.
        limits: bounds on requests; None: the defaults.
        token: if given, requests for the model or for scores must send it: ``Authorization: Bearer TOKEN``.
        page: folder of the browser page; None: the one that comes with this package.

    Raises:
        ModelFileError: the model's file cannot be read, or has changed since it was opened.
    """
    limits = limits or Limits()
    places = Places(limits.requests)
    scorers = Scorers(model, workers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        scorers.stop()

    app = FastAPI(
        title="retina-edge",
        version=own_version(),
        description="Diabetic retinopathy grade and macular edema risk from colour fundus photographs. "
        "For research and demonstration, not for clinical use.",
        lifespan=lifespan,
        redirect_slashes=False,
        responses=refusals_of(421, 500, 503),
        # These documentation pages load scripts from another origin.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(RequestValidationError, _say_what_is_invalid)
    app.add_exception_handler(ClientDisconnect, _say_nothing)
    app.add_exception_handler(Exception, _say_no_more)
    guarded = [] if token is None else [Depends(_guard(token))]
    refusals = refusals_of(401) if token is not None else {}

    @app.head("/health", include_in_schema=False)  # as some load balancers ask
    @app.get("/health")
    async def health() -> Health:
        """Whether the service is up, and how busy it is."""
        return Health(status="ok", requests=places.taken, capacity=places.number)

    # Kept in memory, because the next export may put another model at the same path.
    file = model.content()
    facts = ModelFacts(sha256=model.sha256, package=own_version(), contract=model.contract.to_dict())

    @app.get("/model", dependencies=guarded, responses=refusals)
    async def describe_model() -> ModelFacts:
        """The contract of the model that answers here."""
        return facts

    @app.get(
        "/model.onnx",
        dependencies=guarded,
        response_class=_InPieces,
        responses={200: {"content": {OCTETS: {"schema": BINARY}}}, **refusals},
    )
    async def download_model() -> Response:
        """The model file itself, for the page, which scores in the browser."""
        return _InPieces(file, media_type=OCTETS)

    @app.post(
        "/score",
        dependencies=[Depends(_refuse_other_sites), *guarded],
        response_model=Scores,
        responses={422: {"model": Scores, "description": "None of the photographs could be read"}}
        | refusals_of(400, 403, 408, 413, 415, 429)
        | refusals,
        openapi_extra={"requestBody": body_of(limits)},
    )
    async def score(request: Request, asked: Annotated[ScoreQuery, Query()]) -> Response:
        """Score one photograph (the body is its bytes) or many (a form with a file for each).

        A photograph that cannot be read keeps its place, with the reason; the status is 422 if that is so for all of
        them. With ``maps``, Grad-CAM maps are added if the model file has them.
        """
        if len(request.query_params.multi_items()) > len(request.query_params):
            raise HTTPException(400, "expected each parameter of the query once, found one twice")
        entry = _request_log(request)
        with places.place():
            photographs = await read_photographs(request, limits)
            results = await _unless_gone(request, asyncio.ensure_future(scorers.score(photographs, asked.maps)))
        entry.photographs = len(results)
        entry.unreadable = sum(result["status"] == "error" for result in results)
        status = 422 if entry.unreadable == len(results) else 200
        return JSONResponse({"model": model.sha256, "photographs": results}, status, {"cache-control": "no-store"})

    add_page(app, page or find_page())
    return app


class _InPieces(Response):
    """A response sent in pieces, as fast as the client reads.

    In one piece, the server would hold a copy of the whole for every client that does not read.
    """

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), _PIECE):
            await send({"type": "http.response.body", "body": self.body[start : start + _PIECE], "more_body": True})
        await send({"type": "http.response.body"})


def _score_to_json(model: RetinaModel, photograph: SentFile, maps: bool) -> dict[str, Any]:
    scored: Scored = model.score_file(photograph.content, maps=maps)
    answer = record(Row(photograph.name, scored.prediction, scored.error or ""))
    if scored.prediction is not None and scored.prediction.maps is not None:
        from .overlay import head_maps

        answer["maps"] = {
            head: {"target": head_map.target, "values": head_map.values.astype(float).round(6).tolist()}
            for head, head_map in head_maps(scored.prediction).items()
        }
    return answer


async def _unless_gone(request: Request, work: asyncio.Task[Result]) -> Result:
    """Wait for ``work``, but cancel it as soon as the client disconnects.

    Raises:
        ClientDisconnect: the client left before the result was ready.
    """
    gone = asyncio.ensure_future(request.receive())  # the body was read, so only a disconnect can arrive
    either: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in either:
            task.cancel()
        await asyncio.wait(either)


def _guard(token: str) -> Any:
    async def require_token(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        # In constant time, so that the duration of a comparison does not reveal how much of a guess was right.
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "expected Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return require_token


async def _refuse_other_sites(request: Request) -> None:
    """Refuse what another site's page posts: browsers hide the answer from that page, but they do send the request."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise HTTPException(403, "expected this service's own page or a program, found a page of another site")


async def _say_what_is_invalid(_: Request, err: Exception) -> JSONResponse:
    problems = err.errors() if isinstance(err, RequestValidationError) else []
    said = "; ".join(f"{' '.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
    return JSONResponse({"detail": said}, 400)


def _request_log(request: Request) -> RequestLog:
    """The request's log entry; without ``ServiceMiddleware`` around the app, one that is never written."""
    return getattr(request.state, "entry", None) or RequestLog()


async def _say_nothing(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # only for the log


async def _say_no_more(request: Request, _: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"internal error; the log has it under {_request_log(request).id}"}, 500)
