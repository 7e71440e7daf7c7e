"""Files that are whole or not there, and a full disk: known whoever was writing, told in one message.

A file that is replaced is first written beside itself and then renamed, which the file system does at once or not at all.
"""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it


class DiskFull(OSError):
    """A disk is full; the message says where, and how to go on."""


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full.

    Writers that are not Python (ArrayRecord, TensorStore) raise errors of other types, with the system's words.
    """
    known = isinstance(error, DiskFull) or getattr(error, "errno", None) in FULL
    return known or any(os.strerror(code) in str(error) for code in FULL)


def free(place: str | os.PathLike) -> int:
    """The bytes that are free where `place` is or would be."""
    place = pathlib.Path(place).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def require(place: str | os.PathLike, needed: int, what: str) -> None:
    """Raises DiskFull where fewer bytes are free at `place` than `what` needs: before anything is half written."""
    if free(place) < needed:
        raise DiskFull(f"The disk is full: {free(place):,} bytes free at {place}, and {what} needs {needed:,}.")


@contextlib.contextmanager
def told(place: str | os.PathLike, then: str = "") -> Iterator[None]:
    """Raises DiskFull, which names `place`, for a full disk met inside; other errors, and one that is told, stay.

    Args:
      place: the file or folder that is written.
      then: how to go on.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFull(f"The disk is full: {free(place):,} bytes free at {place}.{then and ' ' + then}") from error


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file as a whole: a reader sees the old content or the new one, never a part."""
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()  # of a write that failed
