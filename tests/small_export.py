"""One small exported model and its conformance kit, for all tests that examine either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from retina.export.cli import main
from small_checkpoint import small_checkpoint


@dataclass(frozen=True)
class SmallExport:
    """The files that one ``retina-export --conformance`` wrote."""

    checkpoint: Path
    model: Path
    kit: Path

    @classmethod
    def make(cls, folder: Path) -> SmallExport:
        made = cls(folder / "small.pth", folder / "small.onnx", folder / "kit")
        small_checkpoint(made.checkpoint)
        options = ["--out", str(made.model), "--conformance", str(made.kit)]
        result = CliRunner().invoke(main, [str(made.checkpoint), *options])
        assert result.exit_code == 0, result.output
        return made
