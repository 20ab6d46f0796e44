"""How much of retina-score's throughput remains when the same photographs go through retina-serve on this machine.

    python benchmarks/serve.py FOLDER --model MODEL.onnx

All contenders take turns on the same photographs, round after round, so that other load on the machine affects all of
them. The service's clients run on the same cores, so that reading and sending the files is part of its cost. The
answers are compared too.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

import click
from retina.runtime import RetinaModel
from retina.runtime.folder import find_pictures
from retina.runtime.terminal import exit_codes
from retina.runtime.workers import usable_cores

Answers = list[tuple[int, int]]
"""DR grade and ME risk of each photograph; -1 if it could not be read."""
BOUNDARY = "retina-serve-benchmark"


def directly(model: RetinaModel, workers: int) -> Callable[[Sequence[Path]], Answers]:
    """Score as retina-score does."""

    def run(files: Sequence[Path]) -> Answers:
        predictions = (scored.prediction for scored in model.score(files, workers=workers))
        return [(-1, -1) if p is None else (p.grade, p.me_risk) for p in predictions]

    return run


def served(port: int, clients: int, together: int) -> Callable[[Sequence[Path]], Answers]:
    """Score through the service: ``clients`` requests at once, ``together`` photographs in each."""
    kept = local()

    def ask(files: Sequence[Path]) -> Answers:
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        head = '--{}\r\nContent-Disposition: form-data; name="photographs"; filename="{}"\r\n\r\n'
        parts = [head.format(BOUNDARY, n).encode() + path.read_bytes() + b"\r\n" for n, path in enumerate(files)]
        body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        if len(files) == 1:
            body, headers = files[0].read_bytes(), {"Content-Type": "image/jpeg"}
        kept.connection.request("POST", "/score", body, headers)
        response = kept.connection.getresponse()
        answer = json.loads(response.read())
        if response.status not in (200, 422):
            raise SystemExit(f"the service answered {response.status}: {answer}")
        return [(row.get("dr_grade", -1), row.get("me_risk", -1)) for row in answer["photographs"]]

    def run(files: Sequence[Path]) -> Answers:
        groups = [files[at : at + together] for at in range(0, len(files), together)]
        with ThreadPoolExecutor(clients) as pool:
            return [answer for answers in pool.map(ask, groups) for answer in answers]

    return run


def compare(files: Sequence[Path], contenders: dict[str, Callable[[Sequence[Path]], Answers]], rounds: int) -> None:
    seconds = dict.fromkeys(contenders, 0.0)
    best = dict.fromkeys(contenders, float("inf"))
    answers = {name: run(files[:2]) for name, run in contenders.items()}  # warm up, not counted
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            answers[name] = run(files)
            taken = time.perf_counter() - start
            seconds[name] += taken
            best[name] = min(best[name], taken)
    first = next(iter(contenders))
    print(
        f"{len(files)} photographs, {rounds} rounds\n{'':<34}{'per second':>11}{'of the first':>14}{'best round':>12}"
    )
    for name in contenders:
        if answers[name] != answers[first]:
            raise SystemExit(f"{name}: expected the answers of {first}, found others")
        share, best_share = seconds[first] / seconds[name], best[first] / best[name]
        print(f"{name:<34}{rounds * len(files) / seconds[name]:>11.2f}{share:>14.3f}{best_share:>12.3f}")


@click.command(context_settings={"show_default": True})
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", "model_file", type=click.Path(path_type=Path), help="[default: as retina-score finds it]")
@click.option("--images", type=click.IntRange(1), default=48, help="Photographs a turn.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Turns of each contender.")
@click.option("--clients", type=click.IntRange(1), default=4, help="Requests at once.")
@exit_codes("serve.py")
def main(folder: Path, model_file: Path | None, images: int, rounds: int, clients: int) -> None:
    """Compare the service with retina-score's own workers."""
    found = [folder / name for name in find_pictures(folder).names[:images]]
    files = (found * (images // len(found) + 1))[:images]
    model, cores = RetinaModel(model_file), usable_cores()
    command = [sys.executable, "-c", "from retina.runtime.serve_cli import main; main()"]
    command += ["--port", "0", "--model", str(model.path), "--workers", str(cores)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().split("/")[2].rsplit(":", 1)[1])
            contenders = {
                f"retina-score, {cores} workers": directly(model, cores),
                f"retina-serve, {clients} clients": served(port, clients, 1),
                f"retina-serve, {clients} clients, forms of 8": served(port, clients, 8),
            }
            compare(files, contenders, rounds)
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
