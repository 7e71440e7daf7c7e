"""A full disk: told in one message by whoever writes, with nothing half written behind it."""

import errno
import io
import os
import pathlib

import pytest

from flowjax import disk
from flowjax.evaluation.run_files import LineFile, read_lines

# What TensorStore says through Orbax, shortened.
TENSORSTORE = "RESOURCE_EXHAUSTED: Error writing: Failed to write 8 bytes: No space left on device [os_error_code='28']"


def full_disk():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error, full",
    [
        (full_disk(), True),
        (OSError(errno.EDQUOT, "over quota"), True),
        (ValueError(TENSORSTORE), True),
        (disk.DiskFull("told before"), True),
        (PermissionError(errno.EACCES, "no"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number_or_its_words(tmp_path, error, full):
    assert disk.is_full(error) == full
    with pytest.raises(disk.DiskFull if full else type(error)) as caught, disk.told(tmp_path / "not" / "there", "Go."):
        raise error
    if full and str(error) != "told before":
        assert f" bytes free at {tmp_path}/not/there. Go." in str(caught.value)
    else:
        assert caught.value is error


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    def half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise full_disk()

    disk.write_atomically(tmp_path / "a.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", half)
        with pytest.raises(disk.DiskFull, match=r"The disk is full: [\d,]+ bytes free at .*a.json"):
            disk.write_atomically(tmp_path / "a.json", "the new one")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.json": "old"}


class Small(io.FileIO):
    """A file on a disk that has room for so many bytes more: the last write is cut short, then none is taken."""

    room = 30

    def write(self, content):
        if not self.room:
            raise full_disk()
        written = super().write(content[: self.room])
        self.room -= written
        return written


def test_a_log_line_that_does_not_fit_is_cut_off_again(tmp_path, monkeypatch):
    LineFile(tmp_path / "log.jsonl").append({"step": 1})
    log = LineFile(tmp_path / "log.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", lambda path, mode, buffering: Small(path, mode))
        log.append({"step": 2})
        with pytest.raises(disk.DiskFull, match="log.jsonl"):
            log.append({"step": 3, "loss": 0.25})
        log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    log.append({"step": 3})  # there is room again
    assert [line["step"] for line in read_lines(tmp_path / "log.jsonl")] == [1, 2, 3]
