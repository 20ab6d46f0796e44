"""Framed photographs, decoded only once: training reads these in every epoch instead of the camera originals."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime import dicom, field, formats, jpeg, picture, webp
from ..runtime.contract import Preprocessing
from ..runtime.digest import sha256_of
from ..runtime.errors import OutputError, PictureError
from ..runtime.file_state import stamp
from ..runtime.output_file import remove_leftovers, replacing, require_free, write_text_atomically
from ..runtime.picture import decode
from ..runtime.versions import decoder_versions
from ..runtime.workers import usable_cores
from . import framing, perceptual_hash
from .checkpoint import current_versions
from .config import Cache
from .framing import make_frame

_CODE = (picture, formats, dicom, jpeg, webp, field, framing, perceptual_hash)
"""What decodes, frames and hashes: frames made by another version of it are made again."""

PixelType = Literal["uint8", "float32"]
Pixels = NDArray[np.uint8] | NDArray[np.float32]


class Frames(Protocol):
    """Framed photographs by index: (3, S, S) RGB, uint8 or float32, in [0, 255]."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor: ...


class DecodedFrames:
    """Decodes and frames on every access, to float32: the reference that the cached frames must equal.

    Access raises PictureError if the photograph cannot be read.
    """

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = tuple(paths), preprocessing
        self._frame = make_frame(preprocessing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.framed(decode(self.paths[index]))

    @torch.inference_mode()
    def framed(self, pixels: NDArray[np.uint8]) -> Tensor:
        """A decoded photograph (H, W, 3) as (3, S, S) float32."""
        return self._frame(torch.from_numpy(pixels).unsqueeze(0))[0].clone()  # type: ignore[no-any-return]


class ArrayFrames:
    """Frames in one array in memory, (N, 3, S, S)."""

    def __init__(self, array: Pixels) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.array[index]))


class MappedFrames(ArrayFrames):
    """Frames in a memory-mapped .npy file, of which only the name is sent to another process."""

    def __init__(self, file: Path) -> None:
        super().__init__(np.load(file, mmap_mode="r"))
        self.file = file

    def __reduce__(self) -> tuple[type[MappedFrames], tuple[Path]]:
        return MappedFrames, (self.file,)


@dataclass(frozen=True)
class Look:
    """What the first reading of a photograph's file found, for the leakage check and the data fingerprint."""

    sha256: str
    """Of the file, in hexadecimal; empty if it cannot be read."""
    phash: str
    """``perceptual_hash.perceptual_hash`` of the photograph; empty if it cannot be decoded."""
    fault: str = ""
    """Why it cannot be read or decoded, with the file's name; empty if it can."""


def look_through(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    dtype: PixelType,
    cache: Cache,
    folder: Path,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Frames, list[Look]]:
    """Decode every photograph once, keep its frame as ``cache`` says, and report those that cannot be read.

    Args:
        paths: photographs.
        preprocessing: how they are framed.
        dtype: uint8 for training, whose augmentation works on whole grey levels; float32 for evaluation, which must
            see exactly what the exported graph computes.
        cache: ``disk`` maps an array under ``folder``, which later runs find again; ``memory`` keeps the array for this
            run; ``off`` decodes on every access.
        folder: where ``disk`` keeps its arrays.
        progress: called once per photograph, unless the frames were found in the cache.

    Returns:
        the frames, and for each photograph what was found.

    Raises:
        OutputError: the cache folder cannot be written or lacks space.
    """
    key = _key(paths, preprocessing, dtype)
    looks_file, array_file = folder / f"{key}.json", folder / f"{key}.npy"
    frames = DecodedFrames(paths, preprocessing)
    size = preprocessing.image_size
    shape = (len(paths), 3, size, size)
    if cache == "off":
        return frames, _look_at_each(frames, None, progress)
    if cache == "memory":
        array = np.empty(shape, dtype=dtype)
        return ArrayFrames(array), _look_at_each(frames, array, progress)
    if os.path.isfile(looks_file) and os.path.isfile(array_file):
        with contextlib.suppress(OSError, EOFError, ValueError, TypeError):  # damaged: written again below
            return MappedFrames(array_file), [Look(**look) for look in json.loads(looks_file.read_text())]
    remove_leftovers(folder)
    _expect_room(folder, math.prod(shape) * np.dtype(dtype).itemsize)
    with replacing(array_file) as temporary:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        looks = _look_at_each(frames, mapped, progress)
        mapped.flush()
        del mapped  # some systems do not rename a file that is mapped
    if any(look.fault for look in looks):
        array_file.unlink(missing_ok=True)  # another run on the same data may have been first
        return frames, looks
    write_text_atomically(looks_file, json.dumps([vars(look) for look in looks]))
    return MappedFrames(array_file), looks


def _look_at_each(frames: DecodedFrames, array: Pixels | None, progress: Callable[[], object]) -> list[Look]:
    """Decode every photograph, into ``array`` if one is given."""

    def look(index: int) -> Look:
        digest, path = "", frames.paths[index]
        try:
            digest = sha256_of(path)
            pixels = decode(path)
        except OSError as err:
            return Look(digest, "", f"{path}: cannot be read: {err.strerror or err}")
        except PictureError as err:
            return Look(digest, "", str(err))
        finally:
            progress()
        if array is not None:
            frame = frames.framed(pixels)
            array[index] = (frame.round().to(torch.uint8) if array.dtype == np.uint8 else frame).numpy()
        return Look(digest, perceptual_hash.perceptual_hash(pixels))

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(look, range(len(frames))))


def _expect_room(folder: Path, needed: int) -> None:
    """Raise OutputError if ``needed`` bytes do not fit: a full disk kills a process that writes to a mapped file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_free(folder, needed, "free space for the cache", "; make room, or try --cache memory")
    except OSError as err:
        raise OutputError(f"{folder}: cannot keep the cache: {err.strerror or err}; try --cache memory") from None


def _key(paths: Sequence[Path], preprocessing: Preprocessing, dtype: PixelType) -> str:
    """The cache's key: each file's path, size and times, the framing, the code, and the libraries' versions."""
    # Of a broken link, for example, there are none: reading it reports the fault.
    stats = [(os.path.realpath(path), *(stamp(path) or ())) for path in paths]
    prep = {**asdict(preprocessing), "intermediate_size": preprocessing.intermediate_size}
    code = [sha256_of(Path(inspect.getfile(module))) for module in _CODE]
    versions = {**current_versions(), **decoder_versions(), "ImageHash": version("ImageHash")}
    text = json.dumps([stats, prep, dtype, code, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
