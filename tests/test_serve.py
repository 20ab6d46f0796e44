"""retina-serve over real sockets: the table's rows, the right refusal for everything else, and many clients at once."""

from __future__ import annotations

import asyncio
import csv
import gc
import hashlib
import http.client
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from click.testing import CliRunner
from crowd import BOUNDARY, FORM, JPEG, besiege, bodies, form
from PIL import Image
from retina.runtime import RetinaModel
from retina.runtime.connection import SECONDS, Connection
from retina.runtime.errors import MissingExtraError, ModelFileError, OutputError, UsageError
from retina.runtime.extras import require_extra
from retina.runtime.json_log import JsonLines
from retina.runtime.limits import MIB, Limits
from retina.runtime.middleware import CLIENT_GONE, DRAINED, ServiceMiddleware
from retina.runtime.serve_cli import GRACE, main
from retina.runtime.service import Scorers, create_app
from retina.runtime.upload import SentFile
from serving import COMMAND, Service, serving
from tiny_model import CONTRACT, RAMP, expected_probs, write_tiny_model

RNG_SIDE = 48


def picture(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (RNG_SIDE, RNG_SIDE + seed, 3)) * rng.uniform(0.2, 1, 3)).astype(np.uint8)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


TOLD = replace(CONTRACT, explain=True, unfamiliar_from=4.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx", contract=TOLD)


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = ("--max-mib", "1", "--max-photographs", "4", "--queue", "8")
    with serving(tmp_path_factory.mktemp("service"), "--model", model, *limits) as running:
        yield running


# What it answers


def test_one_photograph_as_its_bytes(service: Service) -> None:
    answer = service.ask("POST", "/score?maps=true", png(1), JPEG)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    (row,) = answer.json["photographs"]
    dr, me = expected_probs(picture(1))
    assert list(row["dr_probs"]) == ["0", "1", "2", "3", "4"]
    assert list(row["dr_probs"].values()) == pytest.approx(dr, abs=1e-5)
    assert row["me_prob"] == pytest.approx(me[1], abs=1e-5)
    assert (row["dr_grade"], row["me_risk"]) == (dr.argmax(), me.argmax())
    assert row["referable_prob"] == pytest.approx(dr[2:].sum(), abs=1e-5)
    assert row["referable"] is bool(dr[2:].sum() >= 0.5)
    assert row["novelty"] == pytest.approx(20 * picture(1)[..., 2].mean() / 255, abs=1e-4)
    assert row["unfamiliar"] is bool(row["novelty"] >= 4)
    for head, channel, probs in (("dr", 0, dr), ("me", 1, me)):
        expected = picture(1)[..., channel].mean() / 255 * RAMP.reshape(4, 4)
        assert np.asarray(row["maps"][head]["values"]) == pytest.approx(expected, abs=1e-5)
        assert all(value == round(value, 6) for line in row["maps"][head]["values"] for value in line)
        assert row["maps"][head]["target"] == probs.argmax()


def test_what_it_answers_is_what_it_describes(service: Service) -> None:
    (row,) = service.ask("POST", "/score?maps=true", png(1), JPEG).json["photographs"]
    described = service.ask("GET", "/openapi.json").json["components"]["schemas"]["ScoredPhotograph"]["properties"]
    assert row.keys() == described.keys()


def test_many_are_the_rows_of_retina_score(service: Service, model: Path, tmp_path: Path) -> None:
    files = {"a.png": png(1), "b.jpg": png(2)[:300], "c ü.png": png(3)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    score = [sys.executable, "-c", "from retina.runtime.cli import main; main()"]
    subprocess.run([*score, tmp_path, "--model", model, "--out", tmp_path / "t.csv"], check=False, capture_output=True)
    table = list(csv.DictReader((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()))
    answer = service.ask("POST", "/score", form(files), FORM)
    assert answer.status == 200
    assert [row["image"] for row in answer.json["photographs"]] == list(files)
    for row, line in zip(answer.json["photographs"], table, strict=True):
        assert (row["image"], row["status"], row["error"]) == (line["Image name"], line["status"], line["error"])
        assert str(row.get("dr_grade", "")) == line["Pred DR grade (orig)"]
        assert str(row.get("me_risk", "")) == line["Pred ME risk"]
        probs = row.get("dr_probs", dict.fromkeys("01234", None))
        assert all(line[f"dr_prob_{grade}"] == ("" if p is None else f"{p:.6f}") for grade, p in probs.items())
        assert "maps" not in row


def test_fields_that_are_no_files_are_left_out_up_to_sixteen(service: Service) -> None:
    files = form({"a.png": png(1)})
    other = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="note"\r\n\r\nleft eye\r\n'.encode()
    answer = service.ask("POST", "/score", 16 * other + files, FORM)
    assert (answer.status, [row["image"] for row in answer.json["photographs"]]) == (200, ["a.png"])
    assert service.ask("POST", "/score", 17 * other + files, FORM).status == 400


def test_files_without_a_name_are_called_by_their_place(service: Service) -> None:
    part = form({"": png(1)}).removesuffix(f"--{BOUNDARY}--\r\n".encode())
    answer = service.ask("POST", "/score", part + form({"a.png": png(2), "b.png": png(3)}), FORM)
    assert [row["image"] for row in answer.json["photographs"]] == ["photograph 1", "a.png", "b.png"]
    answer = service.ask("POST", "/score", part + part + form({"a.png": png(2)}), FORM)
    assert [row["image"] for row in answer.json["photographs"]] == ["photograph 1", "photograph 2", "a.png"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("filename=\"=?utf-8?B?TcO8bGxlci5qcGc=?=\"; filename*=utf-8''M%C3%BCller.jpg", "Müller.jpg"),
        ("filename*=UTF-8'de'M%C3%BCller.jpg; filename=\"other.jpg\"", "Müller.jpg"),
        ("filename*=utf-8''M%C3%BCller.jpg", "Müller.jpg"),
        ("filename*=iso-8859-1''M%FCller.jpg", "Müller.jpg"),
        ('filename="plain.jpg"', "plain.jpg"),
        ("filename=\"a; filename*=utf-8''b.jpg\"", "a; filename*=utf-8''b.jpg"),
        ("filename=\"a.jpg\"; filename*=unicode-escape''%5Cud800", "a.jpg"),
        ("filename=\"a.jpg\"; filename*=utf-8''", "a.jpg"),
        ('filename="a.jpg"; filename*=broken', "a.jpg"),
        ("filename=\"a.jpg\"; filename*1=b; filename*=utf-8''c.jpg", "a.jpg"),
        ("filename=\"a.jpg\"; filename*=utf-8''%ED%A0%80.jpg", "\ufffd\ufffd\ufffd.jpg"),
    ],
)
def test_a_name_in_the_extended_form_is_the_file_s(service: Service, names: str, expected: str) -> None:
    """As .NET sends it, beside a plain name that is coded as in a mail."""
    body = form({"a.png": png(1), "b.png": png(2)}).replace(b'filename="a.png"', names.encode("latin-1"))
    answer = service.ask("POST", "/score", body, FORM)
    assert answer.status == 200, answer.body
    assert [row["image"] for row in answer.json["photographs"]] == [expected, "b.png"]
    assert [row["status"] for row in answer.json["photographs"]] == ["ok", "ok"]


def test_every_answer_has_the_headers_that_protect_a_page(service: Service) -> None:
    """Other pages may neither frame nor embed it, and it may use threads; refusals have them too."""
    ids = set()
    for path, name, status in (("/health", "localhost", 200), ("/nothing", "localhost", 404), ("/health", "a.b", 421)):
        answer = service.ask("GET", path, headers={"Host": name})
        assert answer.status == status
        ids.add(answer.headers["x-request-id"])
        assert answer.headers.items() >= {
            "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
            "content-security-policy": "frame-ancestors 'none'", "cross-origin-opener-policy": "same-origin",
            "cross-origin-embedder-policy": "require-corp", "cross-origin-resource-policy": "same-origin",
        }.items()  # fmt: skip
    assert len(ids) == 3


def test_model_tells_the_contract_and_gives_the_file(service: Service, model: Path) -> None:
    opened = RetinaModel(model)
    facts = service.ask("GET", "/model").json
    assert facts["sha256"] == opened.sha256 == service.ask("POST", "/score", png(1), JPEG).json["model"]
    assert facts["contract"] == json.loads(opened.contract.to_json())
    assert service.ask("GET", "/model.onnx").body == model.read_bytes()


def test_the_file_given_is_the_one_that_answers_whatever_became_of_it(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx")
    opened = path.read_bytes()
    with serving(tmp_path, "--model", path) as service:
        for change in (lambda: write_tiny_model(path, contract=replace(CONTRACT, explain=True)), path.unlink):
            change()
            answer = service.ask("GET", "/model.onnx")
            assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
            assert answer.body == opened
            assert hashlib.sha256(answer.body).hexdigest() == service.ask("GET", "/model").json["sha256"]


def test_the_file_is_handed_over_in_pieces(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, sent = RetinaModel(model), b""
    content = bytes(range(256)) * 10_001
    monkeypatch.setattr(opened, "content", lambda: content)
    app = create_app(opened, workers=1)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(30)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        assert len(message.get("body", b"")) <= MIB // 2, "what is handed over is held until the client has taken it"
        sent += message.get("body", b"")

    scope = {"type": "http", "method": "GET", "path": "/model.onnx", "query_string": b"", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert sent == content


def test_health(service: Service) -> None:
    assert service.ask("GET", "/health").json == {"status": "ok", "requests": 0, "capacity": 8}
    head = service.ask("HEAD", "/health")
    assert (head.status, head.body) == (200, b"")


# What it refuses


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", JPEG, 400, "found an empty body"),
        (b"--other\r\n", FORM, 400, "multipart/form-data"),
        (form({}), FORM, 400, "at least one file"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
        (b"x", {"Content-Type": "text/plain"}, 415, "found 'text/plain'"),
        (bytes(MIB + 1), JPEG, 413, f"at most {MIB} bytes"),
        (form({"large.png": bytes(MIB)}), FORM, 413, f"at most {MIB} bytes"),
        (form({f"{n}.png": b"x" for n in range(5)}), FORM, 400, "up to 4 files"),
        (form({"a.png": png(1)}), {"Content-Type": f"{FORM['Content-Type']}; charset=undefined"}, 400, "charset"),
        (form({"a.png": png(1), "": png(2)}).replace(b'; filename=""', b""), FORM, 400, "without a filename"),
        (form({"a.png": png(1), "b.png": png(2)})[:-60], FORM, 400, "its last boundary"),
        (form({"a.png": png(1), "b.png": png(2)})[:-4], FORM, 400, "its last boundary"),
    ],
)
def test_refuses(service: Service, body: bytes, headers: dict[str, str], status: int, said: str) -> None:
    answer = service.ask("POST", "/score", body, headers)
    assert answer.status == status
    assert said in answer.json["detail"]


def test_a_body_of_exactly_the_limit_is_read(service: Service) -> None:
    assert service.ask("POST", "/score", bytes(MIB), JPEG).status == 422, "read, and no photograph"
    pieces = iter([bytes(MIB - 1), bytes(1)])
    chunked = {**JPEG, "Transfer-Encoding": "chunked"}
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("POST", "/score", pieces, chunked, encode_chunked=True)
    assert connection.getresponse().status == 422
    connection.close()


def test_media_types_and_host_names_are_known_in_any_case(service: Service) -> None:
    assert service.ask("POST", "/score", png(1), {"Content-Type": "Image/PNG; q=1"}).status == 200
    for form_data in ("Multipart/Form-Data", "multipart/form-data "):
        spelled = FORM["Content-Type"].replace("multipart/form-data", form_data)
        assert service.ask("POST", "/score", form({"a.png": png(1)}), {"Content-Type": spelled}).status == 200
    for media_type in ("application/dicom", "application/octet-stream"):
        assert service.ask("POST", "/score", png(1), {"Content-Type": media_type}).status == 200
    assert service.ask("GET", "/health", headers={"Host": f"LocalHost:{service.port}"}).status == 200


def test_what_is_no_photograph_says_so(service: Service) -> None:
    answer = service.ask("POST", "/score", form({"a.png": png(1)[:200], "b.pdf": b"%PDF-1.7"}), FORM)
    assert answer.status == 422
    assert [row["status"] for row in answer.json["photographs"]] == ["error", "error"]
    assert "found a file that starts with 25 50 44 46" in answer.json["photographs"][1]["error"]


def test_other_paths_methods_queries_and_names(service: Service) -> None:
    for path in ("/nothing", "/score/"):  # no redirect, whose address would ignore a proxy's TLS
        assert service.ask("POST", path, png(1), JPEG).status == 404
    wrong = service.ask("PUT", "/score", b"x")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    for query, named in (("maps=perhaps", "maps"), ("map=true", "map"), ("maps=true&overlay=1", "overlay")):
        refused = service.ask("POST", f"/score?{query}", png(1), JPEG)
        assert (refused.status, refused.json["detail"].split(":")[0]) == (400, f"query {named}")
    refused = service.ask("POST", "/score?maps=1&maps=0", png(1), JPEG)
    assert (refused.status, "found one twice" in refused.json["detail"]) == (400, True)
    for name in ("localhost", f"127.0.0.1:{service.port}", "[::1]:80"):
        assert service.ask("GET", "/health", headers={"Host": name}).status == 200
    assert service.ask("GET", "/model", headers={"Host": "rebound.example"}).status == 421
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        assert service.ask("POST", "/score", png(1), {**JPEG, "Sec-Fetch-Site": site}).status == status
    described = service.ask("GET", "/openapi.json").json["paths"]["/score"]["post"]["responses"]
    assert {"403", "421", "500"} <= described.keys()


def test_each_media_type_that_is_described_is_read(service: Service) -> None:
    described = service.ask("GET", "/openapi.json").json["paths"]["/score"]["post"]["requestBody"]["content"]
    kinds = {f"image/{kind}" for kind in ("jpeg", "png", "tiff", "bmp", "webp", "jp2")}
    assert described.keys() - {"multipart/form-data"} == kinds | {"application/octet-stream", "application/dicom"}
    for media_type in described.keys() - {"multipart/form-data"}:
        assert service.ask("POST", "/score", png(1), {"Content-Type": media_type}).status == 200


@pytest.mark.parametrize(
    "name", ["[::1]evil.com", "localhost:80@evil.com", "localhost@evil.com", "[::1", "localhost:x.com", "[::1]:80:80"]
)
def test_what_only_begins_like_a_host_name_of_this_machine_is_refused(service: Service, name: str) -> None:
    assert service.ask("GET", "/health", headers={"Host": name}).status == 421


@pytest.mark.parametrize(
    ("target", "name", "status"),
    [
        ("http://127.0.0.1/score", "127.0.0.1", 200),
        ("HTTP://localhost:80/score?maps=true", "localhost:80", 200),
        ("http://127.0.0.1/sc%6Fre", "127.0.0.1", 200),
        ("http://evil.com/score", "127.0.0.1", 421),
        ("http://127.0.0.1@evil.com/score", "127.0.0.1", 421),
        ("http://127.0.0.1/score", "evil.com", 421),
        ("http://127.0.0.1/http://127.0.0.1/score", "127.0.0.1", 404),
        ("ftp://127.0.0.1/score", "127.0.0.1", 404),
        ("http://127.0.0.1", "127.0.0.1", 405),
    ],
)
def test_a_target_may_be_written_out_as_for_a_proxy(service: Service, target: str, name: str, status: int) -> None:
    """RFC 9112, 3.2.2: a server must accept it."""
    answer = service.ask("POST", target, png(1), {**JPEG, "Host": name})
    assert answer.status == status
    wait_until(service, 0)
    (line,) = (line for line in service.lines() if line.get("id") == answer.headers["x-request-id"])
    assert line["route"] == ("/score" if status == 200 else "/" if status == 405 else "other")


def test_a_refusal_reaches_a_client_that_sends_first(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {3 * MIB}\r\n\r\n"
        client.sendall(head.encode())
        for _ in range(3):
            # If the service had answered and closed, the second piece would be reset, and the third could not be sent.
            client.sendall(bytes(MIB))
            threading.Event().wait(0.2)
        assert client.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize("expectation", ["100-continue", "100-Continue"])
def test_a_refusal_instead_of_100_continue_ends_the_connection(service: Service, expectation: str) -> None:
    """The client may still send the body, so what follows could be the body or another request."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        head = "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n"
        client.sendall(f"{head}Expect: {expectation}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b"")).lower()
    assert answer.startswith(b"http/1.1 415")
    assert b"\r\nconnection: close\r\n" in answer


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MIB + 1}\r\nExpect: 100-continue\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_body_without_end_is_cut_off(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        client.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n")
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 * DRAINED * MIB:
                sent += client.send(bytes(MIB))
        assert sent < 16 * DRAINED * MIB


def half(service: Service, body: bytes) -> socket.socket:
    """A client that has sent half of its photograph."""
    client = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body[:100])
    return client


def rest(client: socket.socket, body: bytes) -> bytes:
    with client:
        client.sendall(body[100:])
        return b"".join(iter(lambda: client.recv(65536), b""))


def wait_until(service: Service, requests: int) -> None:
    for _ in range(200):
        if service.ask("GET", "/health").json["requests"] == requests:
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"never {requests} requests in work")


def test_beyond_the_queue_is_told_to_come_back(model: Path, tmp_path: Path) -> None:
    body = png(1)
    with serving(tmp_path, "--model", model, "--queue", "2") as service:
        waiting = [half(service, body) for _ in range(2)]
        wait_until(service, 2)
        refused = service.ask("POST", "/score", body, JPEG)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert all(rest(client, body).startswith(b"HTTP/1.1 200") for client in waiting)
        wait_until(service, 0)
        assert service.ask("POST", "/score", body, JPEG).status == 200


def test_a_stop_lets_requests_in_work_end(model: Path, tmp_path: Path) -> None:
    body = png(1)
    with serving(tmp_path, "--model", model) as service:
        client = half(service, body)
        wait_until(service, 1)
        service.process.send_signal(signal.SIGTERM)
        for _ in range(200):  # until it no longer listens
            try:
                socket.create_connection(("127.0.0.1", service.port), timeout=1).close()
            except ConnectionRefusedError:
                break
            threading.Event().wait(0.02)
        assert b'"dr_grade"' in rest(client, body)
        assert service.process.wait(20) == 0
        assert service.lines()[-1]["event"] == "stopped"


def test_a_stop_does_not_wait_for_what_takes_longer_and_says_so(model: Path, tmp_path: Path) -> None:
    slow = (
        "import time; from retina.runtime import serve_cli; from retina.runtime.model import RetinaModel\n"
        "serve_cli.GRACE, RetinaModel.score_file = 0.2, lambda *_, **__: time.sleep(30); serve_cli.main()"
    )
    with serving(tmp_path, "--model", model, command=[sys.executable, "-c", slow]) as service:
        scored, sending = half(service, png(1)), half(service, png(2))
        scored.sendall(png(1)[100:])
        wait_until(service, 2)
        service.process.send_signal(signal.SIGTERM)
        answers = [rest(client, b"") for client in (scored, sending)]
        assert service.process.wait(15) == 0
        *_, last = lines = service.lines()
    assert last["event"] == "stopped"
    ended = [line for line in lines if line["event"] == "request" and line["route"] == "/score"]
    assert [line["status"] for line in ended] == [503, 503]
    for answer in answers:
        head, body = answer.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert sum(f"x-request-id: {line['id']}".encode() in head for line in ended) == 1
        assert "stopping" in json.loads(body)["detail"]


def test_a_connection_that_asks_for_nothing_is_given_up(model: Path, tmp_path: Path) -> None:
    impatient = "from retina.runtime import connection, serve_cli; connection.SECONDS = 0.3; serve_cli.main()"
    with serving(tmp_path, "--model", model, command=[sys.executable, "-c", impatient]) as service:
        address, health = ("127.0.0.1", service.port), b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        with half(service, png(1)) as asking:
            for sent in (b"", health, health + b"\r\n" + health):
                with socket.create_connection(address, timeout=4) as client:
                    client.sendall(sent)
                    while client.recv(65536):
                        pass
            assert rest(asking, png(1)).startswith(b"HTTP/1.1 200"), "it takes its time, but it asks"


def test_a_client_that_takes_nothing_is_given_up(model: Path, tmp_path: Path) -> None:
    impatient = (
        "from retina.runtime import connection, serve_cli; from retina.runtime.model import RetinaModel\n"
        f"connection.SECONDS, RetinaModel.content = 0.3, lambda _: bytes({32 * MIB}); serve_cli.main()"
    )
    with serving(tmp_path, "--model", model, command=[sys.executable, "-c", impatient]) as service:
        for pauses, is_given_up in ((1, True), (15, False)):
            taken = 0
            with socket.create_connection(("127.0.0.1", service.port), timeout=5) as client:
                client.sendall(b"GET /model.onnx HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                with suppress(ConnectionResetError):
                    for _ in range(pauses):
                        threading.Event().wait(1.5 / pauses)
                        taken += len(client.recv(MIB))
                    while piece := client.recv(MIB):
                        taken += len(piece)
            assert (taken < 32 * MIB) is is_given_up


def test_a_client_that_drains_the_buffer_is_kept_though_as_much_waits_again() -> None:
    aborted: list[bool] = []
    connection = Connection.__new__(Connection)
    connection.cycle = SimpleNamespace(response_complete=False)  # type: ignore[assignment]
    connection.flow = SimpleNamespace(resume_writing=lambda: None)  # type: ignore[assignment]
    connection.loop = SimpleNamespace(call_later=lambda *_: None)  # type: ignore[assignment]
    connection.transport = SimpleNamespace(  # type: ignore[assignment]
        get_write_buffer_size=lambda: MIB, abort=lambda: aborted.append(True)
    )
    before = connection._state()
    connection.resume_writing()
    connection._give_up_if_still(before)
    assert not aborted, "it took what waited"
    connection._give_up_if_still(connection._state())
    assert aborted


@pytest.mark.parametrize("output", ["/dev/null", "/dev/full"])
def test_a_stop_at_the_very_start_and_an_address_that_cannot_be_printed(model: Path, output: str) -> None:
    stopped_while_it_prints = (
        "import click, os, signal; from retina.runtime.serve_cli import main; echo = click.echo\n"
        "click.echo = lambda *told, **how: (os.kill(os.getpid(), signal.SIGTERM), echo(*told, **how)); main()"
    )
    with Path(output).open("w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", stopped_while_it_prints, "--model", model, "--port", "0"],
            stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["event"]) == (0, "stopped")


def test_a_path_that_the_output_cannot_spell(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows an output that is redirected is in the code page of the country."""
    named = shutil.copy(model, tmp_path / "\u65e5.onnx")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    with serving(tmp_path, "--model", named) as service:
        assert service.ask("GET", "/health").status == 200


# Who may ask


def test_token(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model", model, token="a secret ") as service:
        refused_tokens = ("another", "A SECRET", "a secre", "a secret s", "a")
        for given in ({}, {"Authorization": "a secret"}, *({"Authorization": f"Bearer {t}"} for t in refused_tokens)):
            for method, path in (("POST", "/score"), ("GET", "/model"), ("GET", "/model.onnx")):
                refused = service.ask(method, path, png(1) if method == "POST" else None, {**JPEG, **given})
                assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        known = {**JPEG, "Authorization": "Bearer a secret"}
        assert service.ask("POST", "/score", png(1), known).status == 200
        assert service.ask("GET", "/model", headers=known).status == 200
        assert service.ask("GET", "/health").status == 200
        assert service.ask("GET", "/").status == 200, "the page must load to ask for the token"
        assert "secret" not in service.log.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: expected a token"),
        (["--token-file", "none.txt"], "--token-file none.txt: expected a file with a token"),
        (["--token-file", "accents.txt"], "--token-file accents.txt: expected a token of printable ASCII characters"),
        (["--host", "..", "--token-file", "marked.txt"], "--host .. --port 0: expected an address to listen on"),
        (["--max-mib", "nan"], "--max-mib: expected a number of MiB, found nan"),
        (["--max-mib", "inf"], "--max-mib: expected a number of MiB, found inf"),
        (["--host", "..", "--token-file", "token.txt"], "--host .. --port 0: expected an address to listen on"),
        (["--page", "."], "--page .: expected a folder with index.html"),
        (["--model", "none.onnx"], "none.onnx: expected a model file"),
        (["--model", "\x1b]0;owned\x07.onnx"], "\\x1b]0;owned\\x07.onnx: expected a model file"),
    ],
)
def test_what_cannot_start_says_why(model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "accents.txt").write_text("t\u00f6k\u00e9n", encoding="utf-8")
    (tmp_path / "token.txt").write_text("secret")
    (tmp_path / "marked.txt").write_text("secret", encoding="utf-8-sig")  # as Windows' Notepad may save it
    done = subprocess.run(
        [*COMMAND, "--model", model, "--port", "0", *options], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["::1", "[::1]", "127.0.0.1", "localhost"])
def test_the_service_is_made_as_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """And needs no token where only this machine can reach it."""
    made: dict[str, Any] = {}

    def create(opened: RetinaModel, **options: Any) -> None:
        made.update(options, model=opened)
        raise UsageError("made")

    monkeypatch.setattr("retina.runtime.service.create_app", create)
    monkeypatch.delenv("RETINA_TOKEN", raising=False)
    (tmp_path / "index.html").touch()
    limits = ["--queue", "5", "--max-photographs", "6", "--max-mib", "0.5"]
    options = ["--host", host, "--exact", "--workers", "3", "--page", str(tmp_path), *limits]
    result = CliRunner().invoke(main, ["--model", str(model), *options])
    assert result.output == "retina-serve: made\n"
    large = np.zeros((300, 400, 3), np.uint8)
    assert RetinaModel(model).decode(Image.fromarray(large)).shape < large.shape
    assert made.pop("model").decode(Image.fromarray(large)).shape == large.shape
    limit = Limits(requests=5, photographs=6, body=MIB // 2)
    assert made == {"workers": 3, "limits": limit, "token": None, "page": tmp_path}


def test_a_stop_waits_for_half_a_minute(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --help says."""

    def config(_app: object, **options: Any) -> None:
        raise UsageError(f"waits {options['timeout_graceful_shutdown']}")

    monkeypatch.setattr("uvicorn.Config", config)
    monkeypatch.setattr("retina.runtime.serve_cli._listen", lambda *_: None)
    monkeypatch.delenv("RETINA_TOKEN", raising=False)
    result = CliRunner().invoke(main, ["--model", str(model), "--port", "0"])
    assert result.output == "retina-serve: waits 30\n"
    assert "after 30 seconds at most" in " ".join(CliRunner().invoke(main, ["--help"]).output.split())


def test_an_address_in_use_is_told(service: Service, model: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--model", model, "--port", str(service.port)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"--port {service.port}: expected an address to listen on" in done.stderr


def test_help_needs_no_extra_and_running_names_it() -> None:
    helped = subprocess.run(
        [sys.executable, "-c",
         "import sys, retina.runtime.serve_cli as s\n"
         "heavy = [m for m in ('fastapi', 'uvicorn', 'onnxruntime', 'PIL') if m in sys.modules]\n"
         "assert not heavy, heavy\ns.main(['--help'])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "retina-serve --model model.onnx" in helped.stdout
    missing = (
        "import importlib.util as u; u.find_spec = lambda name: None\n"
        "from retina.runtime.serve_cli import main; main([])"
    )
    ran = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "pip install 'retina-edge[serve]'" in ran.stderr
    assert "PyTorch" not in ran.stderr


def test_pytorch_is_spoken_of_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"torch, .*, onnx, .* not installed\. Run: .*\[export\]'\n.*PyTorch's CPU build"
    ):
        require_extra("export")
    with pytest.raises(MissingExtraError, match=r"\[sign\]'$"):
        require_extra("sign")


def test_pytorch_is_not_loaded_where_it_has_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with --read-only and no TMPDIR; its own traceback has a hundred lines."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    require_extra("serve")
    with pytest.raises(
        OutputError, match=r"folder for temporary files, found none \(.*\['/proc'\]\)\. Name one in TMPDIR"
    ):
        require_extra("export")


# What it logs


def test_log_is_json_and_names_no_file(service: Service) -> None:
    private = "MUELLER^ANNA-1950"
    # A name where a DICOM file should have its transfer syntax, which pydicom's warning quotes.
    damaged = b"%bDICM\x02\x00\x10\x00UI\x12\x00%b\0" % (bytes(128), private.encode())
    assert service.ask("POST", "/score", damaged, JPEG).status == 422
    photographs = form({f"{private}.png": png(1), "b.png": b"x"})
    assert service.ask("POST", f"/score?name={private}&{private}=1", photographs, FORM).status == 400
    assert service.ask("POST", "/score", photographs, FORM).status == 200
    service.ask("GET", f"/{private}")
    wait_until(service, 0)  # the line is written after the answer
    text = service.log.read_text()
    assert private not in text
    assert "127.0.0.1" not in text
    scored = [line for line in service.lines() if line.get("status") == 200 and line["route"] == "/score"][-1]
    unknown = [line for line in service.lines() if line.get("status") == 404][-1]
    assert (scored["event"], scored["route"], scored["status"]) == ("request", "/score", 200)
    assert (scored["photographs"], scored["unreadable"]) == (2, 1)
    assert scored["received"] > len(png(1))
    assert (unknown["route"], unknown["status"]) == ("other", 404)
    service.ask("GET", "/health", headers={"Host": "rebound.example"})
    service.ask("GET", "/openapi.json")
    wait_until(service, 0)
    routes = {line["status"]: line["route"] for line in service.lines() if line["event"] == "request"}
    assert routes[421] == "other"
    assert "/openapi.json" not in service.log.read_text()


def test_log_says_what_the_model_was_never_trained_for(tmp_path: Path) -> None:
    never = replace(CONTRACT, provenance={"untrained_heads": ["me"]})
    with serving(tmp_path, "--model", write_tiny_model(tmp_path / "tiny.onnx", contract=never)) as service:
        said = service.ask("GET", "/model").json
        cautions = [line for line in service.lines() if line["level"] == "warning"]
    assert [line["event"] for line in cautions] == [never.caution]
    assert said["contract"]["provenance"] == {"untrained_heads": ["me"]}


def test_a_caution_of_the_file_s_own_is_logged_and_handed_on(tmp_path: Path) -> None:
    told = replace(CONTRACT, added_caution="Not for children: \x1b[2J.")
    with serving(tmp_path, "--model", write_tiny_model(tmp_path / "tiny.onnx", contract=told)) as service:
        said = service.ask("GET", "/model").json
        cautions = [line["event"] for line in service.lines() if line["level"] == "warning"]
        assert "\x1b" not in service.log.read_text()
    assert cautions == [said["contract"]["caution"]] == [told.added_caution]


def test_log_counts_the_bytes_of_all_pieces_and_the_milliseconds(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "retina.runtime.middleware")
    body, opened = form({"a.png": png(1)}), RetinaModel(model)
    pieces = [
        {"type": "http.request", "body": body[at : at + 1000], "more_body": True} for at in range(0, len(body), 1000)
    ]
    asyncio.run(Client(opened, Limits()).post(*pieces, {"type": "http.request", "body": b"", "more_body": False}))
    asyncio.run(Client(opened, Limits(seconds=0.2)).post(pieces[0]))
    whole, slow = (vars(record)["fields"] for record in caplog.records)
    assert len(pieces) > 2
    assert (whole["status"], whole["received"], whole["photographs"]) == (200, len(body), 1)
    assert (slow["status"], slow["received"]) == (408, 1000)
    assert 200 <= slow["ms"] < 10_000


def test_log_tells_of_an_exception_where_but_not_what() -> None:
    try:
        raise KeyError("MUELLER^ANNA")
    except KeyError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "x", 1, "failed", (), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["error"], line["event"], line["level"]) == ("KeyError", "failed", "error")
    assert line["at"][-1].startswith("test_serve.py:")
    assert "MUELLER" not in json.dumps(line)


# What clients may do to it


class Client:
    """An ASGI client in this process, for timing that sockets cannot control."""

    def __init__(self, model: RetinaModel, limits: Limits, workers: int = 1) -> None:
        self.app = ServiceMiddleware(create_app(model, workers=workers, limits=limits), limits)
        self.sent: list[dict[str, Any]] = []
        self.waited = 0
        """How often it was waited for after it had sent its last message."""

    async def post(self, *messages: dict[str, Any], then: float = 30.0) -> None:
        """Send these messages, and disconnect after ``then`` seconds."""
        queue = list(messages)

        async def receive() -> dict[str, Any]:
            if queue:
                return queue.pop(0)
            self.waited += 1
            await asyncio.sleep(then)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/score", "raw_path": b"/score", "query_string": b"",
                 "headers": [(k.lower().encode(), v.encode()) for k, v in FORM.items()], "http_version": "1.1",
                 "scheme": "http", "server": ("localhost", 80), "client": None, "root_path": ""}  # fmt: skip
        await self.app(scope, receive, send)


def test_only_the_request_tells_that_its_photographs_failed(caplog: pytest.LogCaptureFixture) -> None:
    """And asyncio reports none of them: it does not know the request's id."""
    others = set(threading.enumerate())
    begun: list[str] = []
    go = threading.Event()

    class Failing:
        def __getattr__(self, name: str) -> NoReturn:
            begun.append(name)
            go.wait()
            raise RuntimeError("the model failed")

    async def ask() -> None:
        scorers = Scorers(Failing(), 2)  # type: ignore[arg-type]
        asked = asyncio.ensure_future(scorers.score([SentFile(f"{n}.png", b"") for n in range(4)], maps=False))
        while len(begun) < 2:
            await asyncio.sleep(0.01)
        go.set()
        time.sleep(0.1)  # both have failed before the loop hears of the first
        with pytest.raises(RuntimeError, match="the model failed"):
            await asked
        scorers.stop()
        while set(threading.enumerate()) - others:
            await asyncio.sleep(0.01)

    asyncio.run(ask())
    gc.collect()
    assert caplog.records == []


def test_the_limits_are_those_that_the_guide_states() -> None:
    guide = " ".join((Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8").split())
    assert "| 408, 413, 415 | the body took over a minute;" in guide
    assert Limits().seconds == 60
    assert "at most twice `--queue` times `--max-mib` (4 GiB by default)" in guide
    assert 2 * Limits().requests * Limits().body == 4 * 2**30
    assert "for a minute nothing is requested on it, or no part of an answer is taken." in guide
    assert SECONDS == 60
    assert "those in progress have 30 seconds to finish" in guide
    assert GRACE == 30


def test_a_slow_body_gives_its_place_back(model: Path) -> None:
    client = Client(RetinaModel(model), Limits(seconds=0.1))
    half_a_form = {"type": "http.request", "body": form({"a.png": png(1)})[:50], "more_body": True}
    asyncio.run(client.post(half_a_form))
    assert client.sent[0]["status"] == 408
    assert client.waited == 1, "not once more, to read the rest"
    assert (b"connection", b"close") in client.sent[0]["headers"]


def test_photographs_are_never_written_to_disk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form's files stay in memory: in /tmp, patients' pictures could outlive the answer."""
    rolled: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rolled.append)
    files = {"a.png": png(1), "large.png": bytes(3 * MIB)}
    client = Client(RetinaModel(model), Limits())
    asyncio.run(client.post({"type": "http.request", "body": form(files), "more_body": False}))
    assert client.sent[0]["status"] == 200
    assert rolled == []


def test_a_refused_client_that_sends_no_more_is_not_waited_for(model: Path) -> None:
    """The rest of a refused body is read only so long, or such clients would hold connections without end."""
    client = Client(RetinaModel(model), Limits(body=100, seconds=0.1))
    part = {"type": "http.request", "body": form({"a.png": png(1)})[:150], "more_body": True}
    asyncio.run(client.post(part, then=2.0))
    assert client.sent[0]["status"] == 413
    assert client.waited == 1
    assert (b"connection", b"close") in client.sent[0]["headers"], "before the client left"


def test_work_for_a_client_that_left_is_dropped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, begun, release = RetinaModel(model), [], threading.Event()
    original = opened.score_file

    def slow(source: bytes, *, maps: bool = False) -> Any:
        begun.append(source)
        release.wait(20)
        return original(source, maps=maps)

    monkeypatch.setattr(opened, "score_file", slow)
    body = {"type": "http.request", "body": form({f"{n}.png": png(n) for n in range(8)}), "more_body": False}
    client = Client(opened, Limits())
    asyncio.run(client.post(body, then=0.3))
    release.set()
    assert [message.get("status") for message in client.sent] == [CLIENT_GONE, None]
    assert len(begun) == 1


def test_photographs_of_clients_that_left_are_not_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their places are free, so other clients send as much again: the bound on memory would be none."""
    opened, release = RetinaModel(model), threading.Event()
    original = opened.score_file

    def slow(source: bytes, *, maps: bool = False) -> Any:
        release.wait(20)
        return original(source, maps=maps)

    monkeypatch.setattr(opened, "score_file", slow)
    client = Client(opened, Limits())
    one, many = form({"a.png": png(1)}), form({f"{n}.png": png(n) for n in range(8)})

    async def come_and_leave() -> list[str]:
        for body in (one, many, many):
            await client.post({"type": "http.request", "body": body, "more_body": False}, then=0.1)
        kept = [found.name for found in gc.get_objects() if type(found) is SentFile]
        release.set()
        await client.post({"type": "http.request", "body": many, "more_body": False})
        return kept

    gc.collect()
    gc.disable()  # what waits for it in a cycle counts as kept
    try:
        kept = asyncio.run(come_and_leave())
    finally:
        gc.enable()
    assert kept == ["a.png"], "the one that is being scored"
    assert client.sent[-2]["status"] == 200, "the thread is free again"


def test_as_many_photographs_are_scored_at_once_as_there_are_workers(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, both = RetinaModel(model), threading.Barrier(2)
    original = opened.score_file

    def together(source: bytes, *, maps: bool = False) -> Any:
        both.wait(5)
        return original(source, maps=maps)

    monkeypatch.setattr(opened, "score_file", together)
    client = Client(opened, Limits(), workers=2)
    body = form({f"{n}.png": png(n) for n in range(2)})
    asyncio.run(client.post({"type": "http.request", "body": body, "more_body": False}))
    assert client.sent[0]["status"] == 200


def test_what_goes_wrong_inside_is_told_to_the_log_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = RetinaModel(model)

    def broken(source: bytes, *, maps: bool = False) -> Any:
        raise ModelFileError("MUELLER^ANNA: no probability")

    monkeypatch.setattr(opened, "score_file", broken)
    client = Client(opened, Limits())
    asyncio.run(client.post({"type": "http.request", "body": form({"a.png": png(1)}), "more_body": False}))
    assert client.sent[0]["status"] == 500
    request_id = dict(client.sent[0]["headers"])[b"x-request-id"].decode()
    assert json.loads(client.sent[1]["body"]) == {"detail": f"internal error; the log has it under {request_id}"}
    (told,) = [json.loads(JsonLines().format(record)) for record in caplog.records if record.levelname == "ERROR"]
    assert (told["event"], told["error"], told["id"]) == ("failed", "ModelFileError", request_id)
    assert "MUELLER" not in json.dumps(told)


def test_a_crowd(model: Path, tmp_path: Path) -> None:
    seconds = 60.0 if os.environ.get("RETINA_SLOW") else 6.0
    limits = ("--max-mib", "1", "--max-photographs", "4", "--queue", "16")
    with serving(tmp_path, "--model", model, *limits) as service:
        choices = bodies({f"{n}.png": png(n) for n in range(3)}, MIB)
        tally = besiege(service.port, service.process.pid, choices, clients=50, seconds=seconds)
        assert service.process.poll() is None, "crashed"
        wait_until(service, 0)
        answered = sum(line.get("route") == "/score" for line in service.lines())
    print(dict(sorted(tally.answers.items())), [m // MIB for m in tally.memory[:: max(1, len(tally.memory) // 10)]])
    assert tally.wrong == []
    assert tally.sent > 40 * seconds
    assert answered >= tally.sent - tally.answers["breaks off", 0], "each has its line in the log"
    assert {kind for kind, status in tally.answers if status != 429} == {body.kind for body in choices}
    # Memory is flat: the last third exceeds the first by no more than a few bodies in flight.
    third = len(tally.memory) // 3
    assert max(tally.memory[-third:]) - max(tally.memory[:third]) < 24 * MIB


@pytest.mark.slow
def test_schemathesis_finds_nothing(service: Service, tmp_path: Path) -> None:
    examples = "200" if os.environ.get("RETINA_SLOW") else "15"
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "--config-file", Path(__file__).with_name("schemathesis.toml"),
         "run", f"{service.url}/openapi.json", "--max-examples", examples, "--seed", "1", "--no-color"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "Tested: 4" in done.stdout  # all operations, POST /score among them


def test_of_a_traceback_in_a_message_the_log_has_kind_and_places() -> None:
    """As uvicorn logs errors while it starts and stops."""
    try:
        json.loads("patient")
    except json.JSONDecodeError:
        message = traceback.format_exc()
    line = json.loads(JsonLines().format(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, message, (), None)))
    assert (line["event"], line["error"]) == ("error", "json.decoder.JSONDecodeError")
    assert line["at"][0].startswith("test_serve.py:") and line["at"][-1].startswith("decoder.py:")
    assert "patient" not in json.dumps(line) and str(Path(__file__).parent) not in json.dumps(line)
