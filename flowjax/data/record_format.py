r"""One example as bytes: small, self-describing, lossless, and readable without running anything that it holds.

    record = b"FJR1" | header length (uint32, little-endian) | header (JSON, UTF-8) | blobs

The header maps field names to values. Text, numbers, flags and lists of them stand there as they are; an array stands as
{"array": [dtype, shape], "at": [start, length]} and an encoded picture as {"file": [height, width], "at": ...}, where
`at` points into the blobs. Arrays are stored raw: the ArrayRecord file around the records compresses them, and reading
one back is a view, which is some twenty times quicker than decoding a PNG.
"""

import dataclasses
import io
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

MAGIC = b"FJR1"
DTYPES = ("uint8", "uint16", "int32", "float16", "float32", "bool")
HEAD = struct.Struct("<4sI")


class BadPicture(ValueError):
    """A picture that cannot be decoded; whoever reads many skips it, counts it and goes on."""


@dataclasses.dataclass(frozen=True)
class EncodedPicture:
    """The bytes of a picture file as they are (PNG, JPEG, WebP), decoded when it is read.

    Attributes:
      content: the bytes.
      size: height and width of the picture as `decode` gives it.
    """

    content: bytes
    size: tuple[int, int]

    def decode(self) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels, RGB, transparent parts on white, turned as EXIF says."""
        return decode_picture(self.content)


def decode_picture(content: bytes, what: str = "picture") -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture file: RGB, transparent parts on white, turned as EXIF says.

    Raises BadPicture, with what is wrong, for anything that is no whole picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            image = ImageOps.exif_transpose(image) or image
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
            elif image.mode.startswith("I"):  # 16-bit grey: Pillow would clip at 255 instead of scaling
                return _grey(np.asarray(image))
            return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = "no known picture format" if "cannot identify" in str(error) else str(error)
        raise BadPicture(f"the {what} cannot be decoded: {reason}") from error


def _grey(values: np.ndarray) -> np.ndarray:
    scaled = np.clip(values.astype(np.int64) // 257, 0, 255).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def pack(fields: Mapping[str, Any]) -> bytes:
    """The bytes of one example."""
    header, blobs, start = {}, [], 0
    for name, value in fields.items():
        if isinstance(value, EncodedPicture):
            blob, entry = value.content, {"file": list(value.size)}
        elif isinstance(value, np.ndarray):
            if str(value.dtype) not in DTYPES:
                raise ValueError(f"The field '{name}' is {value.dtype}; a record holds arrays of {', '.join(DTYPES)}.")
            blob, entry = np.ascontiguousarray(value).tobytes(), {"array": [str(value.dtype), list(value.shape)]}
        else:
            header[name] = _plain(name, value)
            continue
        header[name] = {**entry, "at": [start, len(blob)]}
        blobs.append(blob)
        start += len(blob)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join((HEAD.pack(MAGIC, len(text)), text, *blobs))


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(
        f"The field '{name}' is {type(value).__name__}; a record holds text, numbers, flags, lists of them, NumPy "
        "arrays and encoded pictures."
    )


def header_of(record: bytes) -> dict[str, Any]:
    """The header alone: cheap, for captions and labels."""
    if len(record) < HEAD.size or record[:4] != MAGIC:
        raise ValueError(
            "This is no record of FlowJAX: it does not start with its mark. Prepare the data set again, or point at a "
            "folder that `python -m flowjax.data.prepare` wrote."
        )
    length = HEAD.unpack_from(record)[1]
    return json.loads(record[HEAD.size : HEAD.size + length])


def unpack(record: bytes) -> dict[str, Any]:
    """The fields of one example; arrays are read-only views of the bytes."""
    fields = header_of(record)
    blobs = HEAD.size + HEAD.unpack_from(record)[1]
    for name, value in fields.items():
        if not isinstance(value, dict):
            continue
        start, length = value["at"]
        start += blobs
        if start + length > len(record):
            raise ValueError(f"The record is cut off inside the field '{name}'. Prepare the data set again.")
        if "array" in value:
            dtype, shape = value["array"]
            fields[name] = np.frombuffer(record, dtype, math.prod(shape), start).reshape(shape)
        else:
            fields[name] = EncodedPicture(record[start : start + length], tuple(value["file"]))
    return fields


def size_of(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a picture, from what the header says of it."""
    return tuple(entry["file"]) if "file" in entry else tuple(entry["array"][1][:2])
