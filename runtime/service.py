"""The HTTP service: photographs in, the rows of retina-score's table out as JSON, and the browser page."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from .envelope import CLIENT_GONE, Entry
from .model import RetinaModel, Scored
from .table import Row, record
from .upload import FIELD, FORM, Limits, Photograph, read_photographs

_HERE = Path(__file__).parent.parent
WORKER = "retina-serve"
"""Name prefix of the scoring threads."""
PAGES = (_HERE / "browser", _HERE / "examples" / "browser")
"""Folders where the browser page may be: in an installed package, and in a checkout."""
WEB_RUNTIME = Path("node_modules", "onnxruntime-web", "dist")
"""onnxruntime-web, below the page's folder. ``npm ci`` installs it; without it the page scores through this service."""
_FILES_OF_THE_PAGE = (".html", ".css", ".js", ".svg")

Result = TypeVar("Result")


class Map(BaseModel):
    """A Grad-CAM map of the most probable class over the framed square."""

    target: int
    """The class that it explains: a DR grade, or 0 or 1 for the ME risk."""
    values: list[list[float]]
    """(h, w), at least 0, in logits, rounded to six decimals."""


class Maps(BaseModel):
    dr: Map
    me: Map


class ScoredPhotograph(BaseModel):
    """A row of the table: a prediction, or the reason why there is none."""

    image: str
    """The file's name as it was sent; ``photograph`` if the body was the file itself."""
    status: Literal["ok", "error"]
    error: str
    dr_grade: int | None = None
    dr_probs: dict[str, float] | None = None
    me_risk: Literal[0, 1] | None = None
    me_prob: float | None = None
    referable: bool | None = None
    referable_prob: float | None = None
    referable_me: bool | None = None
    maps: Maps | None = None


class Scores(BaseModel):
    """The answers for the photographs of one request, in the order sent."""

    model: str
    """sha256 of the model file."""
    photographs: list[ScoredPhotograph]


class ModelFacts(BaseModel):
    """Which model answers here."""

    sha256: str
    package: str
    """Version of retina-edge."""
    contract: dict[str, Any]
    """The contract in the model file: labels, decision rules, preprocessing, provenance."""


class Health(BaseModel):
    status: Literal["ok"]
    requests: int
    """Requests in progress now."""
    capacity: int
    """Number of requests in progress at which further ones are answered 429."""


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Counter:
    """A bounded number of places for requests in progress; a request that finds none is answered 429."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        if self.taken >= self.places:
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
    counter = Counter(limits.requests)
    pool = ThreadPoolExecutor(workers, thread_name_prefix=WORKER)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="retina-edge",
        version=version("retina-edge"),
        description="Diabetic retinopathy grade and macular edema risk from colour fundus photographs. "
        "For research and demonstration, not for clinical use.",
        lifespan=lifespan,
        redirect_slashes=False,
        responses=_refusals(421, 500),
        # These documentation pages load scripts from another origin.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(RequestValidationError, _say_what_is_invalid)
    app.add_exception_handler(ClientDisconnect, _say_nothing)
    app.add_exception_handler(Exception, _say_no_more)
    guarded = [] if token is None else [Depends(_guard(token))]
    refusals = _refusals(401) if token is not None else {}

    @app.get("/health")
    async def health() -> Health:
        """Whether the service is up, and how busy it is."""
        return Health(status="ok", requests=counter.taken, capacity=counter.places)

    # Kept in memory, because the next export may put another model at the same path.
    file = model.content()
    facts = ModelFacts(sha256=model.sha256, package=version("retina-edge"), contract=_as_json(model))

    @app.get("/model", dependencies=guarded, responses=refusals)
    async def describe_model() -> ModelFacts:
        """The contract of the model that answers here."""
        return facts

    @app.get(
        "/model.onnx",
        dependencies=guarded,
        response_class=_InPieces,
        responses={200: {"content": {_OCTETS: {"schema": _BINARY}}}, **refusals},
    )
    async def download_model() -> Response:
        """The model file itself, for the page, which scores in the browser."""
        return _InPieces(file, media_type=_OCTETS)

    @app.post(
        "/score",
        dependencies=[Depends(_refuse_other_sites), *guarded],
        response_model=Scores,
        responses={422: {"model": Scores, "description": "None of the photographs could be read"}}
        | _refusals(400, 403, 408, 413, 415, 429)
        | refusals,
        openapi_extra={"requestBody": _body(limits)},
    )
    async def score(request: Request, maps: bool = False) -> Response:
        """Score one photograph (the body is its bytes) or many (a form with a file for each).

        A photograph that cannot be read keeps its place, with the reason; the status is 422 if that is so for all of
        them. With ``maps``, Grad-CAM maps are added if the model file has them.
        """
        entry = _entry(request)
        with counter.place():
            photographs = await read_photographs(request, limits)
            loop = asyncio.get_running_loop()
            work = [loop.run_in_executor(pool, _score_one, model, photograph, maps) for photograph in photographs]
            results = await _unless_gone(request, asyncio.gather(*work))
        entry.photographs = len(results)
        entry.unreadable = sum(result["status"] == "error" for result in results)
        status = 422 if entry.unreadable == len(results) else 200
        return JSONResponse({"model": model.sha256, "photographs": results}, status, {"cache-control": "no-store"})

    _add_page(app, page or find_page())
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


def find_page() -> Path:
    """The folder of the browser page that comes with this package."""
    return next(folder for folder in PAGES if (folder / "index.html").is_file())


def _score_one(model: RetinaModel, photograph: Photograph, maps: bool) -> dict[str, Any]:
    scored: Scored = model.score_one(photograph.content, maps=maps)
    answer = record(Row(photograph.name, scored.prediction, scored.error or ""))
    if scored.prediction is not None and scored.prediction.maps is not None:
        from .overlay import head_maps

        answer["maps"] = {
            head: {"target": head_map.target, "values": head_map.values.astype(float).round(6).tolist()}
            for head, head_map in head_maps(scored.prediction).items()
        }
    return answer


async def _unless_gone(request: Request, work: asyncio.Future[list[Result]]) -> list[Result]:
    """Wait for ``work``, but cancel it as soon as the client disconnects.

    Raises:
        ClientDisconnect: the client left before the result was ready.
    """
    gone = asyncio.ensure_future(request.receive())  # the body was read, so only a disconnect can arrive
    either: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()


def _guard(token: str) -> Any:
    async def require_token(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        # In constant time, so that the duration of a comparison does not reveal how much of a guess was right.
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "expected Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return require_token


async def _refuse_other_sites(request: Request) -> None:
    """A browser lets any page post to this machine: it keeps the answer from the page, but not the work from us."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise HTTPException(403, "expected this service's own page or a program, found a page of another site")


async def _say_what_is_invalid(_: Request, err: Exception) -> JSONResponse:
    problems = err.errors() if isinstance(err, RequestValidationError) else []
    said = "; ".join(f"{' '.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
    return JSONResponse({"detail": said}, 400)


def _entry(request: Request) -> Entry:
    """The request's log entry; without ``Envelope`` around the app, one that is never written."""
    return getattr(request.state, "entry", None) or Entry()


async def _say_nothing(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # only for the log


async def _say_no_more(request: Request, _: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"internal error; the log has it under {_entry(request).id}"}, 500)


_PIECE = 1 << 18
_OCTETS = "application/octet-stream"
_BINARY = {"type": "string", "format": "binary"}


def _body(limits: Limits) -> Mapping[str, Any]:
    """OpenAPI's description of the body, written by hand: FastAPI would read a declared body whole, without a bound."""
    files = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": limits.photographs}
    form = {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}
    raw = {name: {"schema": {**_BINARY, "minLength": 1}} for name in (_OCTETS, "image/jpeg", "image/png")}
    return {"required": True, "content": {FORM: {"schema": form}, **raw}}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def _as_json(model: RetinaModel) -> dict[str, Any]:
    import json

    contract: dict[str, Any] = json.loads(model.contract.to_json())
    return contract


def _add_page(app: FastAPI, folder: Path) -> None:
    """Serve the page's own files and onnxruntime-web below it, and nothing else that may be in the folder."""

    def serve(path: Path) -> Any:
        async def file() -> FileResponse:
            return FileResponse(path)

        return file

    for path in sorted(folder.iterdir()):
        if path.suffix in _FILES_OF_THE_PAGE:
            app.add_api_route(f"/{path.name}", serve(path), include_in_schema=False, methods=["GET", "HEAD"])
    app.add_api_route("/", serve(folder / "index.html"), include_in_schema=False, methods=["GET", "HEAD"])
    if (folder / WEB_RUNTIME).is_dir():
        app.mount(f"/{WEB_RUNTIME.as_posix()}", StaticFiles(directory=folder / WEB_RUNTIME))
