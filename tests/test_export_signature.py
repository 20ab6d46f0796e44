"""Signatures made by retina-export are valid for the file, and for no other bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from retina.export.cli import main as export
from retina.export.signature import require_key, sign
from retina.runtime.cli import main
from retina.runtime.errors import MissingExtraError, OutputError, RetinaError, UsageError
from retina.runtime.serve_cli import main as serve
from retina.runtime.signature import verify
from small_export import SmallExport
from tiny_model import CONTRACT, write_tiny_model

model_signing = pytest.importorskip("model_signing")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    return tmp_path / "key.pem", tmp_path / "key.pub"


def test_signature_holds_until_a_byte_changes(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    (tmp_path / "m.onnx").write_bytes(b"a model" * 1000)
    signature = sign(tmp_path / "m.onnx", private)
    assert signature.name == "m.onnx.sig"
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(tmp_path / "m.onnx", signature)
    (tmp_path / "m.onnx").write_bytes(b"A model" + b"a model" * 999)
    with pytest.raises(ValueError, match="mismatch"):
        verifier.verify(tmp_path / "m.onnx", signature)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"a model")
    (tmp_path / "no.pem").write_text("not a key")
    with pytest.raises(UsageError, match=r"no\.pem: expected an elliptic-curve private key"):
        sign(tmp_path / "m.onnx", tmp_path / "no.pem")
    with pytest.raises(UsageError, match=r"no\.pem: expected an elliptic-curve private key"):
        require_key(tmp_path / "no.pem")  # before the work starts
    assert not (tmp_path / "m.onnx.sig").exists()


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "rsa.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
    with pytest.raises(UsageError, match=r"rsa\.pem: expected an elliptic-curve private .* found: one of another kind"):
        require_key(tmp_path / "rsa.pem")
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "rsa.pub").write_bytes(private.public_key().public_bytes(pem, spki))
    other_curve = ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(pem, spki)
    (tmp_path / "k1.pub").write_bytes(other_curve)
    (tmp_path / "m.onnx.sig").touch()
    for key, found in (("rsa.pub", "one of another kind"), ("rsa.pem", ""), ("k1.pub", ".*secp256k1")):
        with pytest.raises(UsageError, match=rf"{key}: expected an elliptic-curve public key .*found: {found}"):
            verify(tmp_path / "m.onnx", tmp_path / key)


def test_an_export_is_signed(keys: tuple[Path, Path], small_export: SmallExport, tmp_path: Path) -> None:
    private, public = keys
    options = ["--format", "torchscript", "--sign", str(private), "--out", str(tmp_path / "m.pt")]
    left = tmp_path / ".0123cdef.1.tmp"  # by an export that was killed
    left.touch()
    os.utime(left, (0, 0))
    result = CliRunner().invoke(export, [str(small_export.checkpoint), *options])
    assert result.exit_code == 0, result.output
    assert not left.exists()
    verify(tmp_path / "m.pt", public)
    with pytest.raises(RetinaError, match="expected the signature of the holder of"):
        verify(Path(shutil.copy(small_export.model, tmp_path / "m.pt")), public)


def test_a_file_that_exists_is_signed(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    model = write_tiny_model(tmp_path / "m.onnx")

    def inspect(*options: object) -> Result:
        return CliRunner().invoke(export, ["--inspect", str(model), *map(str, options)])

    refused = inspect("--sign", tmp_path / "none.pem")
    assert refused.exit_code == 2 and "none.pem: expected a private key file" in refused.output
    assert not (tmp_path / "m.onnx.sig").exists()
    result = inspect("--sign", private)
    assert result.exit_code == 0, result.output
    assert f"signed: {tmp_path / 'm.onnx.sig'}" in result.output
    verify(model, public)


def test_score_verifies_before_it_opens(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    model = write_tiny_model(tmp_path / "m.onnx")
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "eye.png")

    def score() -> Result:
        options = ["--model", str(model), "--verify", str(public), "--out", str(tmp_path / "out.csv")]
        return CliRunner().invoke(main, [str(tmp_path / "eye.png"), *options])

    unsigned = score()
    assert unsigned.exit_code == 2
    assert "expected its signature in" in unsigned.output
    sign(model, private)
    assert score().exit_code == 0
    (tmp_path / "out.csv").unlink()
    model.write_bytes(model.read_bytes() + b"\0")
    changed = score()
    assert changed.exit_code == 2
    assert "m.onnx: expected the signature of the holder of" in changed.output
    assert not (tmp_path / "out.csv").exists()


def test_what_takes_the_place_of_a_verified_file_is_refused(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two readings, as an export that ends at that moment does."""
    private, public = keys
    model = write_tiny_model(tmp_path / "m.onnx")
    sign(model, private)
    signed = model.read_bytes()

    def verify_and_replace(path: Path, key: Path) -> str:
        digest = verify(path, key)
        write_tiny_model(path, contract=replace(CONTRACT, provenance={"run": "another"}))
        return digest

    monkeypatch.setattr("retina.runtime.signature.verify", verify_and_replace)
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "eye.png")
    options = ["--model", str(model), "--verify", str(public), "--out", str(tmp_path / "out.csv")]
    result = CliRunner().invoke(main, [str(tmp_path / "eye.png"), *options])
    assert model.read_bytes() != signed
    assert result.exit_code == 2
    assert f"m.onnx: expected sha256 {hashlib.sha256(signed).hexdigest()}, which is signed, found" in result.output
    assert not (tmp_path / "out.csv").exists()


def test_a_full_disk_for_temporary_files_is_not_taken_for_another_file(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    model = write_tiny_model(tmp_path / "m.onnx")
    sign(model, private)

    def full(path: Path, _: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"expected room for a copy of .*m\.onnx, .* No space left .* in TMPDIR"):
        verify(model, public)


def test_serve_verifies_before_it_opens(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    model = write_tiny_model(tmp_path / "m.onnx")

    def refusal() -> str:
        options = ["--model", str(model), "--verify", str(public), "--host", ".."]
        result = CliRunner().invoke(serve, options, env={"RETINA_TOKEN": "secret"})
        assert result.exit_code == 2
        return result.output

    assert "expected its signature in" in refusal()
    sign(model, private)
    assert "--host .. --port 8000: expected an address to listen on" in refusal()


def test_a_key_that_is_not_there_is_told_and_nothing_opened(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A mistyped --verify must never mean: unverified."""
    model, none = write_tiny_model(tmp_path / "m.onnx"), str(tmp_path / "none.pub")
    sign(model, keys[0])
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "eye.png")
    options = ["--model", str(model), "--verify", none]
    score = CliRunner().invoke(main, [str(tmp_path / "eye.png"), *options, "--out", str(tmp_path / "out.csv")])
    served = CliRunner().invoke(serve, [*options, "--host", ".."], env={"RETINA_TOKEN": "secret"})
    for refused in (score, served):
        assert refused.exit_code == 2, refused.output
        assert f"--verify {none}: expected a public key file" in refused.output
    assert not (tmp_path / "out.csv").exists()


def test_without_its_package_no_work_is_begun_for_a_signature(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for refused in (lambda: require_key(private), lambda: verify(tmp_path / "m.onnx", public)):
        with pytest.raises(MissingExtraError, match=r"model_signing not installed.* 'retina-edge\[sign\]'"):
            refused()
