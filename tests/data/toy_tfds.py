"""A TFDS builder that needs no TensorFlow: pictures come as files, and the records are ArrayRecord."""

import pathlib

import numpy as np
import tensorflow_datasets as datasets
from real_data import png


class ToyPictures(datasets.core.GeneratorBasedBuilder):
    """Twelve grey pictures, level 20 * i, with a label and a caption."""

    VERSION = datasets.core.Version("1.0.0")
    folder: pathlib.Path

    def _info(self):
        features = datasets.features.FeaturesDict(
            {
                "image": datasets.features.Image(shape=(None, None, 3), encoding_format="png"),
                "depth": datasets.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
                "kind": datasets.features.ClassLabel(names=["dark", "light"]),
                "caption": datasets.features.Text(),
            }
        )
        return datasets.core.DatasetInfo(builder=self, features=features, citation="nobody, 2026")

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(12):
            file = self.folder / f"{index}.png"
            file.write_bytes(png((20 * index,) * 3, (6, 4)))
            yield (
                index,
                {
                    "image": str(file),
                    "depth": np.full((2, 2, 1), index, np.uint8),
                    "kind": int(index > 5),
                    "caption": f"grey {20 * index}",
                },
            )
