"""Data: where examples come from (SOURCES) and how they reach a step, in an order that (seed, step) decides."""

from flowjax.data.batch import check_batch
from flowjax.data.cached import cached
from flowjax.data.compared_emoji import compared_emoji
from flowjax.data.compared_points import compared_points
from flowjax.data.compared_shapes import compared_shapes
from flowjax.data.comparisons import comparisons
from flowjax.data.demonstrations import demonstrations
from flowjax.data.digits import digits
from flowjax.data.emoji import emoji
from flowjax.data.encoded import EncodedSource, encoded
from flowjax.data.featured import featured
from flowjax.data.folders import folder
from flowjax.data.judgements import JudgedSource
from flowjax.data.latents import LatentSource, latents
from flowjax.data.mixtures import MixedSource, mix, mixed
from flowjax.data.pairs import PairSource, pairs
from flowjax.data.pictures import PictureSource
from flowjax.data.pipeline import BatchIterator, evaluation_batches, make_iterator
from flowjax.data.points import checkerboard, mixture, moons, spirals
from flowjax.data.prepared import records
from flowjax.data.shapes import SceneSource, shapes
from flowjax.data.small import fashion_mnist, mnist_small
from flowjax.data.sources import ArraySource, PointSource, RecordSource, Source
from flowjax.data.tfds import tfds
from flowjax.data.webdataset import webdataset

SOURCES = {
    "mixture": mixture,
    "moons": moons,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "digits": digits,
    "shapes": shapes,
    "mix": mix,
    "cached": cached,
    "encoded": encoded,
    "featured": featured,
    "latents": latents,
    "emoji": emoji,
    "fashion_mnist": fashion_mnist,
    "mnist_small": mnist_small,
    "records": records,
    "folder": folder,
    "webdataset": webdataset,
    "tfds": tfds,
    "pairs": pairs,
    "demonstrations": demonstrations,
    "comparisons": comparisons,
    "compared_points": compared_points,
    "compared_shapes": compared_shapes,
    "compared_emoji": compared_emoji,
}

__all__ = [
    "SOURCES",
    "ArraySource",
    "BatchIterator",
    "EncodedSource",
    "JudgedSource",
    "LatentSource",
    "MixedSource",
    "PairSource",
    "PictureSource",
    "PointSource",
    "RecordSource",
    "SceneSource",
    "Source",
    "check_batch",
    "evaluation_batches",
    "make_iterator",
    "mixed",
]
