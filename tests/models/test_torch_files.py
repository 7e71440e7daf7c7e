"""PyTorch files are read without PyTorch, and nothing in them can run. What PyTorch itself writes is in tests/parity."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from flowjax.models.torch_files import MAGIC, PROTOCOL, RefusedFile, read_tensors


class Storage:
    """What a pickler writes as a persistent id."""

    def __init__(self, key, numbers, count=None):
        self.key, self.numbers, self.count = key, numbers, numbers.size if count is None else count


class Tensor:
    """Pickles as PyTorch's tensors do."""

    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture(autouse=True)
def stand_in_torch(monkeypatch):
    """Names that picklers can find while they write; reading must not need them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("the file's own name was used")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


KINDS = {"f4": "FloatStorage", "i8": "LongStorage", "f2": "HalfStorage"}


def pickled(value, legacy):
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                kind = getattr(sys.modules["torch"], KINDS[item.numbers.dtype.str[1:]])
                return ("storage", kind, item.key, "cpu", item.count, *((None,) if legacy else ()))
            return None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def write(path, value, storages, legacy):
    if legacy:
        parts = [pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, {"little_endian": True})]
        parts += [pickled(value, True), pickle.dumps([s.key for s in storages], 2)]
        parts += [s.numbers.size.to_bytes(8, "little") + s.numbers.tobytes() for s in storages]
        path.write_bytes(b"".join(parts))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", pickled(value, False))
            archive.writestr("w/byteorder", "little")
            for s in storages:
                archive.writestr(f"w/data/{s.key}", s.numbers.tobytes())
    return path


NUMBERS = np.arange(24, dtype=np.float32) / 7


def weights(path, legacy):
    floats, count = Storage("10", NUMBERS), Storage("11", np.array([5], np.int64))
    half = Storage("12", np.float16([1.5, -2]))
    state = collections.OrderedDict(
        matrix=Tensor(floats, (4, 6), (6, 1)),
        turned=Tensor(floats, (6, 4), (1, 6)),
        part=Tensor(floats, (2, 3), (6, 1), offset=8),
        steps=Tensor(count, (), ()),
        half=Tensor(half, (2,), (1,)),
        note="no tensor",
    )
    state._metadata = {"version": 1}  # PyTorch puts such an attribute on its state dictionaries
    return write(path, state, [floats, count, half], legacy)


@pytest.mark.parametrize("legacy", [True, False])
def test_tensors_come_out_as_they_went_in(tmp_path, legacy):
    found = read_tensors(weights(tmp_path / "w.pth", legacy))
    matrix = NUMBERS.reshape(4, 6)
    expected = {"matrix": matrix, "turned": matrix.T, "part": matrix[1:3, 2:5], "steps": np.int64(5)}
    assert list(found) == [*expected, "half"]
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype and found[name].flags.c_contiguous
    assert found["half"].dtype == np.float16


def test_a_state_dictionary_inside_a_checkpoint_is_found(tmp_path):
    floats = Storage("0", NUMBERS)
    nested = {"epoch": 3, "state_dict": {"a": Tensor(floats, (24,), (1,))}}
    np.testing.assert_array_equal(read_tensors(write(tmp_path / "w.pt", nested, [floats], False))["a"], NUMBERS)


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, legacy):
    import os

    trace = tmp_path / "ran"
    floats = Storage("0", NUMBERS)
    attacks = [
        Attack(os.system, f"touch {trace}"),
        Attack(eval, f"open({str(trace)!r}, 'w')"),
        Attack(getattr, floats, "count"),
        Attack(np.load, str(trace)),
    ]
    for attack in attacks:
        path = write(tmp_path / "w.pth", {"a": Tensor(floats, (24,), (1,)), "b": attack}, [floats], legacy)
        with pytest.raises(RefusedFile, match=r"w\.pth: The file asks for '.*', which is no tensor"):
            read_tensors(path)
        assert not trace.exists()
    # The same bytes do run where nobody looks: the attack above is a real one.
    pickle.loads(pickle.dumps(attacks[0], 2))
    assert trace.exists()


def test_code_in_the_header_of_a_legacy_file_is_refused(tmp_path):
    import os

    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Attack(os.system, f"touch {tmp_path / 'ran'}"), 2))
    with pytest.raises(RefusedFile, match=r"'(posix|nt)\.system'"):
        read_tensors(path)
    assert not (tmp_path / "ran").exists()


class Changed:
    """A tensor whose description the pickle changes after it was made, behind any check in the constructor."""

    def __init__(self, tensor, **changes):
        self.tensor, self.changes = tensor, changes

    def __reduce__(self):
        return (*self.tensor.__reduce__(), self.changes)


@pytest.mark.parametrize("legacy", [True, False])
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path, legacy):
    floats = Storage("0", NUMBERS)
    whole = Tensor(floats, (24,), (1,))
    for bad in (
        Tensor(floats, (25,), (1,)),
        Tensor(floats, (2, 6), (19, 1)),
        Tensor(floats, (24,), (1,), offset=1),
        Tensor(floats, (24,), (1,), offset=-1),
        Tensor(floats, (4,), (-1,), offset=3),
        Tensor(floats, (10**9,), (0,)),
        Tensor(floats, (4, 6), (6,)),
        Changed(whole, offset=10**6),
        Changed(whole, strides=(10**6,)),
    ):
        with pytest.raises(RefusedFile, match="does not lie within its storage"):
            read_tensors(write(tmp_path / "w.pth", {"a": bad}, [floats], legacy))


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "w.pth"
    for content in (b"", b"not a pickle at all", pickle.dumps({"a": 1}, 2), pickle.dumps(MAGIC, 2)):
        path.write_bytes(content)
        with pytest.raises(RefusedFile, match=r"w\.pth"):
            read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(RefusedFile, match="without one data.pkl"):
        read_tensors(path)
    with pytest.raises(RefusedFile, match="holds no tensors"):
        read_tensors(write(path, {"a": 1}, [], False))
    short = Storage("0", NUMBERS, count=30)
    with pytest.raises(RefusedFile, match="30"):
        read_tensors(write(path, {"a": Tensor(short, (24,), (1,))}, [short], True))
    with pytest.raises(RefusedFile, match="cut off"):
        read_tensors(write(path, {"a": Tensor(short, (24,), (1,))}, [short], False))
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent.pth")


@pytest.mark.parametrize("legacy", [True, False])
def test_any_flipped_byte_gives_tensors_or_a_refusal(tmp_path, legacy):
    path = weights(tmp_path / "w.pth", legacy)
    whole = path.read_bytes()
    generator, refused = np.random.default_rng(0), 0
    for place in generator.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, np.ndarray) for value in read_tensors(path).values())
        except RefusedFile:
            refused += 1
    assert refused > 50
    for cut in generator.integers(0, len(whole), 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(RefusedFile):
            read_tensors(path)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"a": NUMBERS}, str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.safetensors")["a"], NUMBERS)
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(RefusedFile, match="no safetensors file"):
        read_tensors(tmp_path / "w.safetensors")
