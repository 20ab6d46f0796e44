"""The versions of this package and of those that decode photographs."""

from __future__ import annotations

from contextlib import suppress


def own_version() -> str:
    """The version of this package; ``unknown`` for a copy of its folders without the metadata of an installation."""
    from importlib.metadata import PackageNotFoundError, version  # not loaded for --help

    try:
        return version("retina-edge")
    except PackageNotFoundError:
        return "unknown"


def decoder_versions() -> dict[str, str]:
    """Versions of the packages that determine the pixels of a decoded photograph, by name."""
    from importlib.metadata import PackageNotFoundError, version

    import numpy as np
    import PIL

    versions = {"retina-edge": own_version(), "pillow": PIL.__version__, "numpy": np.__version__}
    with suppress(PackageNotFoundError):
        versions["pydicom"] = version("pydicom")  # which decodes DICOM, where it is installed
    return versions
