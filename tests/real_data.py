"""Tiny packages, folders and archives for the tests of real data; nothing here reaches a network."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image


def png(colour, size=(8, 8), kind="PNG", mode="RGB"):
    """The bytes of a picture of one colour; size is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


def noise_png(seed, size=(8, 8)):
    """The bytes of a picture of noise, and its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def write_folder(folder: pathlib.Path, files: dict, metadata=None):
    """Files by name, and metadata.jsonl from objects or raw lines."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if metadata is not None:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in metadata]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_tar(file: pathlib.Path, members: list, mode="w"):
    """A tar archive of (name, bytes)."""
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file
