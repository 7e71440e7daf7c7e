"""A TFDS data set as a prepared set: fetched by TFDS where it must be, read without TensorFlow where it can be."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.plan import Example, Plan
from flowjax.data.record_format import BadPicture
from flowjax.data.resizing import resize
from flowjax.data.tfds import (
    class_names,
    described,
    fields_of,
    is_prepared,
    keys_of,
    need_tensorflow,
    open_builder,
    random_access,
    read_one,
    split_places,
)


def plan(
    given: pathlib.Path | None,
    store: pathlib.Path,
    say: Callable[[str], None],
    name: str,
    size: int = 0,
    fit: str = "crop",
    test_share: float = 0.05,
) -> Plan:
    """The pictures of a TFDS name.

    Args:
      given: where TFDS keeps its data; its own default when None.
      store: not used: TFDS has its own folder of downloads.
      say: prints a line.
      name: the TFDS name, perhaps with config and version.
      size: pixels of a side; 0 keeps each picture's own.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      test_share: the share held out, where the set has no test or validation split.
    """
    builder = open_builder(name, str(given) if given else "")
    if not is_prepared(builder):
        need_tensorflow(name, "is not on this machine yet and has to be made by TFDS")
        say(f"TFDS fetches and makes {builder.info.full_name}")
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # any exception of a builder: network, a moved file, a missing package
            raise PrepareError(
                f"TFDS could not make {builder.info.full_name}: {error}. Without a network: run "
                f"`python -m flowjax.data.prepare {name}` on a machine that has one, and copy its TFDS folder here for --from."
            ) from error
    by_index = random_access(builder)
    if not by_index:
        need_tensorflow(
            name, f"lies at {builder.data_dir} as {builder.info.file_format.value} and has to be read in order"
        )
    keys, places = keys_of(builder), split_places(builder, test_share)
    sources = {own: builder.as_data_source(split=own) for own, _ in places.values()} if by_index else {}

    def raw(split: str, start: int, stop: int) -> Iterator[tuple[int, dict | BadPicture]]:
        own, wanted = places[split]
        wanted = wanted[start:stop]
        if by_index:
            for place in wanted:
                try:
                    yield int(place), read_one(sources[own], int(place), keys)
                except BadPicture as error:
                    yield int(place), error
        elif len(wanted):
            inside, first = set(wanted.tolist()), int(wanted[0])
            for place, example in enumerate(_in_order(builder, f"{own}[{first}:{wanted[-1] + 1}]"), first):
                if place in inside:
                    yield place, example if isinstance(example, BadPicture) else fields_of(example, keys)

    def read(split: str, start: int, stop: int) -> Iterator[Example]:
        for place, fields in raw(split, start, stop):
            label = f"{split} {place}"
            if isinstance(fields, dict) and size:
                channels = fields["image"].shape[-1]
                fields["image"] = resize(fields["image"], (size, size, 1 if channels == 1 else 3), fit)
            if isinstance(fields, dict):
                fields["image"] = np.ascontiguousarray(fields["image"])
            yield label, fields

    return Plan(
        name=name.replace("/", "_").replace(":", "_") + (f"_{size}" if size else ""),
        command=f"python -m flowjax.data.prepare {name}" + (f" --size {size}" if size else ""),
        counts={split: len(wanted) for split, (_, wanted) in places.items() if len(wanted)},
        read=read,
        sources=[described(builder)],
        options={"size": size or "as they are", "fit": fit, "test_share": test_share},
        labels=class_names(builder, keys),
        group="label" if keys["label"] else "",
    )


def _in_order(builder: Any, split: str) -> Iterator[Mapping[str, Any] | BadPicture]:
    """The examples of a split in the order in which they lie; what cannot be decoded is a BadPicture in its place.

    TFDS reads some of one shard and then some of the next unless told otherwise; then a place would be of another example
    in every piece that is read.
    """
    import tensorflow
    import tensorflow_datasets as datasets

    reading = datasets.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = iter(builder.as_dataset(split=split, shuffle_files=False, read_config=reading))
    while True:
        try:
            yield datasets.as_numpy(next(examples))
        except StopIteration:
            return
        except tensorflow.errors.InvalidArgumentError as error:
            yield BadPicture(f"the example cannot be decoded: {error}")
