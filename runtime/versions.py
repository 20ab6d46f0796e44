"""The versions of the packages that decode photographs."""

from __future__ import annotations

from contextlib import suppress


def decoder_versions() -> dict[str, str]:
    """Versions of the packages that determine the pixels of a decoded photograph, by name."""
    from importlib.metadata import PackageNotFoundError, version  # not loaded for --help

    versions = {package: version(package) for package in ("retina-edge", "pillow", "numpy")}
    with suppress(PackageNotFoundError):
        versions["pydicom"] = version("pydicom")  # which decodes DICOM, where it is installed
    return versions
