"""Latency of one photograph through every format of the same network, interleaved in one run.

    python benchmarks/export.py --checkpoint best.pth --int8 artifacts/retina_multitask.int8.onnx

Each round runs every contender once, so that other load on the machine affects all of them equally; the table shows the
median and the fastest round. Framing is part of every contender. Needs the extra ``export`` and, for the OpenVINO rows,
``pip install openvino``.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from retina.export.graph import DeployedModel
from retina.export.parity import predictor_of_module
from retina.export.to_onnx import OnnxFile
from retina.export.to_torchscript import TorchScriptFile
from retina.runtime.contract import INPUT_NAME, Contract, Preprocessing
from retina.runtime.session import open_session
from retina.runtime.terminal import exit_codes
from retina.train.checkpoint import load_checkpoint
from retina.train.model import RetinaNet
from retina.train.synthetic import photograph

Run = Callable[[NDArray[np.uint8]], object]


@click.command(context_settings={"show_default": True})
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="[default: a ResNet-50 with random weights at 384 px]"
)
@click.option("--int8", type=click.Path(path_type=Path), help="int8 ONNX file of the same checkpoint.")
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--rounds", type=click.IntRange(1), default=30)
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@exit_codes("export.py")
def main(checkpoint: Path | None, int8: Path | None, threads: int, rounds: int, compiled: bool) -> None:
    """Compare the time that each runtime takes for one photograph."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)

    if checkpoint:
        read = load_checkpoint(checkpoint)
        model, contract = read.build_model(), read.contract
    else:
        model, contract = RetinaNet(5).eval(), Contract(Preprocessing(image_size=384))
    pixels = photograph(2, 1, 512, seed=0).picture[None]
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(model, contract, Path(folder), threads, int8=int8, compiled=compiled)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run(pixels)
            run(pixels)
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run(pixels)
                times[name].append(time.perf_counter() - start)
    print_table(times, contract, threads)


def contenders(
    model: RetinaNet, contract: Contract, folder: Path, threads: int, *, int8: Path | None, compiled: bool
) -> dict[str, Run]:
    """By name, a function of (1, H, W, 3) uint8 RGB."""
    plain, explain = replace(contract, explain=False), replace(contract, explain=True)
    deployed = DeployedModel(model, plain)
    script = TorchScriptFile.of(deployed)
    paths = {"ONNX fp32": folder / "fp32.onnx", "ONNX fp32 explain": folder / "explain.onnx"}
    OnnxFile.of(deployed, plain).write(paths["ONNX fp32"], plain)
    OnnxFile.of(DeployedModel(model, explain), explain).write(paths["ONNX fp32 explain"], explain)
    if int8:
        paths["ONNX int8"] = int8
    channels_last = DeployedModel(model, plain).to(memory_format=torch.channels_last)
    runs: dict[str, Run] = {
        "PyTorch eager": predictor_of_module(deployed, plain),
        "PyTorch channels_last": predictor_of_module(channels_last, plain),
        "TorchScript": predictor_of_module(script.module, plain),
    }
    if compiled:
        runs["torch.compile"] = predictor_of_module(cast(torch.nn.Module, torch.compile(deployed)), plain)
    runs |= {name: _onnxruntime(path, threads) for name, path in paths.items()}
    if importlib.util.find_spec("openvino"):
        runs |= {f"OpenVINO, {name}": _openvino(path, threads) for name, path in paths.items() if "explain" not in name}
    return runs


def _onnxruntime(path: Path, threads: int) -> Run:
    session = open_session(path.read_bytes(), threads)
    return lambda pixels: session.run(None, {INPUT_NAME: pixels})


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda pixels: compiled({INPUT_NAME: pixels})


def print_table(times: dict[str, list[float]], contract: Contract, threads: int) -> None:
    print(
        f"one photograph of 512 x 512 at {contract.preprocessing.image_size} px, {threads} threads, "
        f"{len(next(iter(times.values())))} rounds"
    )
    base = float(np.median(times["ONNX fp32"]))
    print(f"{'':28}{'median ms':>10}{'best ms':>10}{'x ONNX fp32':>13}")
    for name, seconds in times.items():
        median = float(np.median(seconds))
        print(f"{name:28}{1e3 * median:10.1f}{1e3 * min(seconds):10.1f}{base / median:13.2f}")


if __name__ == "__main__":
    main()
