"""The floors: runtime never imports torch, commands start quickly, and a missing extra is named."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from click.testing import CliRunner
from eyes import write_set
from PIL import Image
from retina.runtime.extras import EXTRA_MODULES
from small_export import SmallExport
from tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
ABOVE = (
    "torch",
    "torchvision",
    "pandas",
    "cv2",
    "matplotlib",
    "sklearn",
    "scipy",
    "onnx",
    "onnxscript",
    "lightning_fabric",
)

WALL = f"""
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABOVE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Wall())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_ground_floor_imports_behind_a_wall() -> None:
    modules = sorted(p.stem for p in (ROOT / "runtime").glob("*.py") if p.stem != "__init__")
    assert "model" in modules
    done = python(WALL + "".join(f"import retina.runtime.{module}\n" for module in modules))
    assert done.returncode == 0, done.stderr


def test_only_questions_that_never_raise_are_asked_of_a_path() -> None:
    """Of a name too long, or in a locked folder, Path.exists, is_file and is_dir raise; those of os.path say no.

    Path.resolve raises on a link in a circle, until Python 3.13; os.path.realpath answers.
    """
    asked = [
        f"{file.relative_to(ROOT)}: {ast.unparse(node)}"
        for floor in ("runtime", "train", "export", "gradcam")
        for file in sorted((ROOT / floor).glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("exists", "is_file", "is_dir", "resolve")
        and ast.unparse(node.func.value) != "os.path"
    ]
    assert asked == ["runtime/folder.py: entry.is_dir()"]  # a DirEntry's, whose errors are handled there


def test_the_wall_holds() -> None:
    assert python(WALL + "import retina.train.model").returncode != 0


@pytest.mark.parametrize("command", ["train", "export", "gradcam"])
def test_help_needs_no_extra_and_running_names_it(command: str, tmp_path: Path) -> None:
    call = f"from retina.{command}.cli import main; main({{}})"
    helped = python(WALL + call.format(["--help"]))
    assert helped.returncode == 0, helped.stderr
    assert "Usage:" in helped.stdout
    # find_spec consults the wall too, so it is patched to answer as in an empty environment
    Image.new("RGB", (40, 40)).save(tmp_path / "eye.png")
    arguments = [str(tmp_path / "eye.png"), "--checkpoint", "x"] if command == "gradcam" else ["x"]
    ran = python(WALL + "import importlib.util as u\nu.find_spec = lambda name: None\n" + call.format(arguments))
    assert ran.returncode == 2
    assert f"pip install 'retina-edge[{command}]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_modules_of_an_extra_are_those_that_it_installs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed_by = packages_distributions()

    def packages(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in extras[extra]:
            parts = re.fullmatch(r"([\w-]+)(?:\[(\w+)\])?(?:[<>=].*)?", requirement)
            assert parts is not None, requirement
            name, inner = parts.groups()
            found |= packages(inner) if name == "retina-edge" else {name}
        return found

    assert EXTRA_MODULES.keys() == extras.keys() - {"all", "dev"}
    for extra, modules in EXTRA_MODULES.items():
        assert {installed_by[module][0].lower() for module in modules} == packages(extra), extra


def test_a_file_is_inspected_and_its_kit_made_without_any_extra(small_export: SmallExport, tmp_path: Path) -> None:
    arguments = ["--inspect", str(small_export.model), "--conformance", str(tmp_path / "kit")]
    lacking = f"import sys; sys.modules.update(dict.fromkeys({ABOVE!r}))\n"
    done = python(lacking + f"from retina.export.cli import main; main({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert "opset      unknown without onnx" in done.stdout and "rule       referable_dr" in done.stdout
    for file in sorted(small_export.kit.iterdir()):
        assert (tmp_path / "kit" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_model_file_is_evaluated_without_any_extra(tmp_path: Path) -> None:
    write_set(tmp_path / "data", train=range(5), others=range(5))
    arguments = [str(tmp_path / "data"), "--model", str(write_tiny_model(tmp_path / "tiny.onnx"))]
    lacking = f"import sys; sys.modules.update(dict.fromkeys({ABOVE!r}))\n"
    done = python(lacking + f"from retina.train.evaluation import main; main({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert "| DR quadratic kappa |" in done.stdout


@pytest.mark.parametrize(
    ("command", "arguments", "looked_for"),
    [
        ("train", ["--resume"], "runs"),
        ("export", [], "retina_multitask_best.pth"),
        ("gradcam", [str(ROOT / "README.md"), "--layer", "layer3"], "retina_multitask_best.pth"),
    ],
)
def test_the_environment_says_where_artifacts_are(
    command: str, arguments: list[str], looked_for: str, tmp_path: Path
) -> None:
    main = importlib.import_module(f"retina.{command}.cli").main
    result = CliRunner().invoke(main, arguments, env={"RETINA_ARTIFACTS": str(tmp_path / "elsewhere")})
    assert result.exit_code == 2
    assert str(tmp_path / "elsewhere" / looked_for) in result.output


@pytest.mark.parametrize("command", ["train", "export", "gradcam", "runtime"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys, retina.{command}.cli; print([m for m in {(*ABOVE, 'onnxruntime', 'PIL')!r} if m in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["train", "export", "gradcam", "runtime"])
def test_help_shows_its_examples_line_by_line(command: str) -> None:
    shown = python(f"from retina.{command}.cli import main; main(['-h'])").stdout
    example = "retina-score" if command == "runtime" else f"retina-{command}"
    assert sum(line.strip().startswith(f"{example} ") for line in shown.splitlines()) >= 2
    assert "\b" not in shown, "click's mark for kept lines must not be shown"
    assert "\\b" not in shown, "nor its letters"


def test_the_map_for_maintainers_has_every_module_once() -> None:
    text = (ROOT / "docs" / "maintaining.md").read_text()
    tables = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", text, re.MULTILINE))
    named = {
        heading: sorted(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| .* \|$", body, re.MULTILINE))))
        for heading, body in tables.items()
        if "/`" in heading
    }
    folders = {heading: re.findall(r"`(\w+)/`", heading) for heading in named}
    assert sorted(folder for found in folders.values() for folder in found) == ["export", "gradcam", "runtime", "train"]
    for heading, names in named.items():
        modules = [path.stem for folder in folders[heading] for path in (ROOT / folder).glob("*.py")]
        assert names == sorted(module for module in modules if module != "__init__"), heading
