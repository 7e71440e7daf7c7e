"""Any data set of TensorFlow Datasets that has pictures, by its name.

Sets that lie on disk as ArrayRecord are read by index and without TensorFlow. Others (TFRecord) can only be read in their
order and with TensorFlow: `python -m flowjax.data.prepare NAME` does that once, and the prepared set needs it no more.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowjax.choices import Spec, suggestion
from flowjax.data.canvas import Frame, make_frame
from flowjax.data.listing import captions_of, check_test_share, held_out
from flowjax.data.pictures import FilePictures, PictureSource, estimated_deviation, mirror, picture_source
from flowjax.data.record_format import BadPicture
from flowjax.data.resizing import FITS

CAPTIONS = ("caption", "captions", "text")
TESTS = ("test", "validation")


class UnknownName(ValueError):
    """There is no such data set."""


def open_builder(name: str, data_dir: str = "") -> Any:
    """The builder of a data set that lies on disk, or could; the name may have a config and a version (a/b:1.0.0)."""
    import tensorflow_datasets as datasets

    try:
        return datasets.builder(name, data_dir=data_dir or None)
    except datasets.core.registered.DatasetNotFoundError as error:
        near = suggestion(name.split("/")[0].split(":")[0], datasets.list_builders(with_community_datasets=False))
        raise UnknownName(
            f"There is no TFDS data set '{name}', neither in the package nor at {data_dir or 'the TFDS folder'}.{near}"
        ) from error
    except ImportError as error:  # some builders need more packages than tensorflow-datasets brings
        raise ValueError(f"The TFDS data set '{name}' needs another package: {error}. {TENSORFLOW_HINT}") from error


TENSORFLOW_HINT = 'TensorFlow comes with the extra: pip install "flowjax-research[tensorflow]".'


def has_tensorflow() -> bool:
    """Whether TensorFlow could be imported."""
    return importlib.util.find_spec("tensorflow") is not None


def need_tensorflow(name: str, why: str) -> None:
    """Raises a ValueError that names the extra, unless TensorFlow is there."""
    if not has_tensorflow():
        raise ValueError(f"The TFDS data set '{name}' {why}, which takes TensorFlow. {TENSORFLOW_HINT}")


def is_prepared(builder: Any) -> bool:
    """Whether the data lies on disk."""
    return bool(builder.info.splits) and builder.is_prepared()


def random_access(builder: Any) -> bool:
    """Whether the data on disk can be read by index."""
    from tensorflow_datasets.core import file_adapters

    return bool(builder.info.available_file_formats() & file_adapters.FileFormat.with_random_access())


def keys_of(builder: Any, image: str = "", label: str = "", caption: str = "") -> dict[str, str]:
    """Which features are the picture, the label and the caption: those named, else those that look like it."""
    import tensorflow_datasets as datasets

    features = dict(builder.info.features)
    pictures = [
        key
        for key, feature in features.items()
        if isinstance(feature, datasets.features.Image)
        or (isinstance(feature, datasets.features.Tensor) and len(feature.shape) == 3 and feature.np_dtype == np.uint8)
    ]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.features.ClassLabel)]
    keys = {
        "image": image or next(iter(sorted(pictures, key=lambda key: key != "image")), ""),
        "label": label or next(iter(sorted(labels, key=lambda key: key != "label")), ""),
        "caption": caption or next((key for key in CAPTIONS if key in features), ""),
    }
    for what, key in keys.items():
        if key and key not in features:
            raise ValueError(f"'{builder.name}' has no feature '{key}' for {what}. It has {', '.join(features)}.")
    if not keys["image"]:
        raise ValueError(
            f"'{builder.name}' has no picture among its features {', '.join(features)}; name one as `image`."
        )
    return keys


def fields_of(example: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The picture, label and captions of an example, as a record names them."""
    fields: dict[str, Any] = {"image": np.asarray(example[keys["image"]], np.uint8)}
    if keys["label"]:
        fields["label"] = int(example[keys["label"]])
    if keys["caption"]:
        value = example[keys["caption"]]
        values = value if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) else [value]
        words = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in values]
        fields["caption"] = list(captions_of(words) or ())
    return fields


def class_names(builder: Any, keys: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the classes."""
    return tuple(builder.info.features[keys["label"]].names) if keys["label"] else ()


def split_places(builder: Any, test_share: float) -> dict[str, tuple[str, np.ndarray]]:
    """train and test -> (the set's own split, places in it); a set without a test split holds a share of train out."""
    check_test_share(test_share)
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    if "train" not in sizes:
        raise ValueError(f"'{builder.name}' has the splits {', '.join(sizes)}; one named 'train' is needed.")
    places = np.arange(sizes["train"])
    own = next((name for name in TESTS if sizes.get(name)), None)
    if own:
        return {"train": ("train", places), "test": (own, np.arange(sizes[own]))}
    out = np.array([held_out(f"{builder.name} {place}", test_share) for place in places], bool)
    return {"train": ("train", places[~out]), "test": ("train", places[out])}


def tfds(
    tfds_name: str,
    size: int = 64,
    fit: str = "crop",
    channels: int = 3,
    flip: bool = False,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    labels: bool = True,
    image: str = "",
    label: str = "",
    caption: str = "",
    data_dir: str = "",
    test_share: float = 0.05,
    mask_multiple: int = 0,
    canvas: tuple = (),
) -> PictureSource:
    """A TFDS data set that lies on disk as ArrayRecord, read by index without TensorFlow.

    Args:
      tfds_name: its name, perhaps with config and version.
      size: pixels of a side.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      channels: 1 for grey, 3 for RGB.
      flip: augmentation, mirror half of the training pictures.
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry `label`, where there are labels.
      image: the feature that is the picture; found by itself when empty.
      label: the feature that is the label.
      caption: the feature that is the caption.
      data_dir: where TFDS keeps its data; its own default when empty.
      test_share: the share held out, where the set has no test or validation split.
      mask_multiple: keep proportions on one canvas: each picture has at most the pixels of a square of `size`, sides that
        are multiples of this, and a `pixel_mask` (flowjax/data/canvas.py), for networks with masked=True; 0 for none.
      canvas: height and width of that canvas; by default one with room for proportions up to 2:1.
    """
    if size < 1 or fit not in FITS or channels not in (1, 3):
        raise ValueError(f"size={size}, fit='{fit}', channels={channels}; expected size >= 1, {FITS}, 1 or 3.")
    builder = open_builder(tfds_name, data_dir)
    command = f"python -m flowjax.data.prepare {tfds_name}" + (f" --from {data_dir}" if data_dir else "")
    if not is_prepared(builder):
        raise ValueError(f"The TFDS data set '{tfds_name}' is not at {builder.data_dir}. Run `{command}` to get it.")
    if not random_access(builder):
        raise ValueError(
            f"The TFDS data set '{tfds_name}' lies at {builder.data_dir} as {builder.info.file_format.value}, which has no "
            f"access by index. Run `{command}` once (with TensorFlow), then use data=dict(name='records', path=NAME)."
        )
    keys = keys_of(builder, image, label, caption)
    frame = make_frame((size, size, channels), fit, mask_multiple, canvas)
    parts = {
        split: _pictures(builder.as_data_source(split=own), places, keys, frame, f"{tfds_name} {own}")
        for split, (own, places) in split_places(builder, test_share).items()
    }
    names = class_names(builder, keys)
    return picture_source(
        parts["train"],
        parts["test"],
        frame,
        estimated_deviation(parts["train"]),
        len(names) if labels and names else None,
        tokenizer,
        text_length,
        transforms=(mirror(),) if flip else (),
        labels=names,
        card={"sources": [described(builder)]},
    )


def described(builder: Any) -> dict[str, str]:
    """Name, version, licence and citation, for a card."""
    info = builder.info
    licence = getattr(info, "redistribution_info", None)
    return {
        "tfds": info.full_name,
        "licence": (licence.license if licence else "") or "see the set's own page",
        "attribution": " ".join((info.citation or info.homepage or "").split()),
    }


def _pictures(source: Any, places: np.ndarray, keys: Mapping[str, str], frame: Frame, name: str) -> FilePictures:
    def load(index: int) -> dict[str, Any]:
        fields = read_one(source, int(places[index]), keys)
        rows: dict[str, Any] = frame(fields["image"])
        if "label" in fields:
            rows["label"] = fields["label"]
        if fields.get("caption"):
            rows["captions"] = tuple(fields["caption"])
        return rows

    def captions() -> list[str]:
        return [text for place in places for text in read_one(source, int(place), keys).get("caption", ())]

    facts = [name, len(source), *dataclasses.astuple(frame), dict(keys)]
    return FilePictures(load, len(places), captions, facts, lambda index: f"{name} {places[index]}")


def read_one(source: Any, place: int, keys: Mapping[str, str]) -> dict[str, Any]:
    """One example of a data source; what cannot be decoded is a BadPicture."""
    try:
        return fields_of(source[place], keys)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadPicture(f"the example cannot be decoded: {error}") from error
