r"""Weights published as PyTorch files, read without PyTorch and without running anything that is in them.

A `.pth` file is a pickle, and a pickle is a program: loading one from a stranger runs the stranger's code. `Tensors`
below is an unpickler that knows five words. `find_class`, through which every name in a pickle must go, admits ordered
dictionaries, the two functions that PyTorch rebuilds tensors with (our own harmless ones stand in for them) and the
names of storages; any other name ends the reading with the name in the message. The numbers themselves are not in the
pickle. It holds for each tensor a storage key, an offset, a shape and strides, which are checked against the storage
before anything is read, because strides that lead outside would show memory that is not the file's.

    legacy   pickles one after another: a magic number, a protocol number, facts of the writing machine, the object,
             the list of storage keys; then for each key its count as int64 and its numbers, little-endian.
    zip      an archive with NAME/data.pkl, the object, and NAME/data/KEY, the numbers of one storage.
    safetensors   no pickle at all: read with its own package, extra `pretrained`.

This is the one file of the project that may use the pickle module, and only the class `pickle.Unpickler`.
"""

import collections
import dataclasses
import math
import os
import pickle
import zipfile
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}


class RefusedFile(ValueError):
    """A weights file that holds something else than tensors, or is damaged."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor that is described but not read yet: in the legacy format the numbers come after the description."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor as an array of its own, contiguous."""
        # Checked here and not where it was described: a pickle may change an object after making it.
        offset, shape, strides = self.offset, self.shape, self.strides
        whole = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)) and len(shape) == len(strides)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) if whole else -1
        count = math.prod(shape) if whole else -1
        if not whole or count > len(numbers) or (count and last >= len(numbers)):
            raise RefusedFile(
                f"A tensor of shape {shape}, strides {strides} and offset {offset} does not lie within its storage of "
                f"{len(numbers)} numbers: the file is damaged or made to mislead."
            )
        if count == 0:
            return np.zeros(shape, numbers.dtype)
        steps = [numbers.dtype.itemsize * stride for stride in strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps))


class Tensors(pickle.Unpickler):
    """Reads pickles that hold plain values and tensors; every other name in them is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for one of the admitted names."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if f"{module}.{name}" in STORAGES:
            return f"{module}.{name}"
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            # Made anew for every mention: what a pickle does to a function it was given ends with that pickle.
            def rebuild_tensor(storage, offset, shape, strides, *ignored):
                if not isinstance(storage, _Storage):
                    raise RefusedFile("A tensor of the file names no storage: the file is damaged.")
                return _Tensor(storage, offset, tuple(shape), tuple(strides))

            return rebuild_tensor if name == "_rebuild_tensor_v2" else lambda tensor, *ignored: tensor
        raise RefusedFile(
            f"The file asks for '{module}.{name}', which is no tensor: refused, and nothing of it was run. Get the "
            "weights from a source you trust, as a state dictionary or as safetensors."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage by its description ('storage', dtype, key, device, count, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in STORAGES:
            raise RefusedFile(
                f"The file describes a storage as {pid!r}; expected ('storage', type, key, device, count)."
            )
        if len(pid) > 5 and pid[5] is not None:
            raise RefusedFile("The file holds views of storages, which only very old PyTorch wrote. Save it again.")
        if not isinstance(pid[4], int) or pid[4] < 0:
            raise RefusedFile(f"The file has a storage of {pid[4]!r} numbers.")
        return _Storage(str(pid[2]), STORAGES[pid[1]], pid[4])


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a .pth file (legacy or zip) or of a .safetensors file, by name.

    A checkpoint that holds its state dictionary under `state_dict` or `model` is opened there. Values that are no
    tensors are left out.

    Raises:
      RefusedFile: the file holds something else than tensors, is damaged, or is none of the three formats.
    """
    path = os.fspath(path)
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    with open(path, "rb") as file:
        try:
            found, storages = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        except RefusedFile as error:
            raise RefusedFile(f"{path}: {error}") from None
        except Exception as error:  # a damaged file fails in every way there is
            raise RefusedFile(f"{path} is no PyTorch file that can be read: {error}") from error
    while isinstance(found, dict) and not any(isinstance(value, _Tensor) for value in found.values()):
        inner = [found[name] for name in ("state_dict", "model") if isinstance(found.get(name), dict)]
        if not inner:
            break
        found = inner[0]
    if not isinstance(found, dict):
        raise RefusedFile(f"{path} holds a {type(found).__name__}; expected a dictionary of tensors.")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise RefusedFile(f"{path} holds no tensors; expected a state dictionary.")
    try:
        return {name: tensor.read(storages[tensor.storage.key]) for name, tensor in tensors.items()}
    except RefusedFile as error:
        raise RefusedFile(f"{path}: {error}") from None


def _numbers(raw: bytes, storage: _Storage) -> np.ndarray:
    if len(raw) != storage.count * storage.dtype.itemsize:
        raise RefusedFile(
            f"Storage {storage.key} has {len(raw)} bytes, not {storage.count} numbers: the file is cut off."
        )
    return np.frombuffer(raw, storage.dtype)


def _storages(value: Any) -> dict[str, _Storage]:
    """Every storage that a loaded object mentions, by key."""
    if isinstance(value, _Tensor):
        return {value.storage.key: value.storage}
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return {key: storage for item in values for key, storage in _storages(item).items()}


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, np.ndarray]]:
    file.seek(0)
    if Tensors(file).load() != MAGIC or Tensors(file).load() != PROTOCOL:
        raise RefusedFile("It does not begin as a PyTorch file does.")
    if Tensors(file).load().get("little_endian") is not True:
        raise RefusedFile("It was written on a big-endian machine; save it again on a usual one.")
    found = Tensors(file).load()
    described, numbers = _storages(found), {}
    for key in Tensors(file).load():
        count = int.from_bytes(file.read(8), "little")
        if key not in described:
            raise RefusedFile(
                f"Storage {key} belongs to no tensor: its type is not known, so the file cannot be read on."
            )
        if count != described[key].count:
            raise RefusedFile(f"Storage {key} has {count} numbers where its tensors expect {described[key].count}.")
        numbers[key] = _numbers(file.read(count * described[key].dtype.itemsize), described[key])
    return found, numbers


def _read_zip(file: IO[bytes]) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise RefusedFile("It is a zip archive without one data.pkl: no PyTorch file (or a TorchScript one).")
        folder = names[0].removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist() and archive.read(folder + "byteorder") != b"little":
            raise RefusedFile("It was written on a big-endian machine; save it again on a usual one.")
        with archive.open(names[0]) as description:
            found = Tensors(description).load()
        return found, {
            key: _numbers(archive.read(f"{folder}data/{key}"), storage) for key, storage in _storages(found).items()
        }


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.flax import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package safetensors: pip install 'flowjax-research[pretrained]'."
        ) from error
    try:
        return {name: np.asarray(value) for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise RefusedFile(f"{path} is no safetensors file that can be read: {error}") from error
