"""Data: where examples come from (SOURCES) and how they reach a step, in an order that (seed, step) decides."""

from flowjax.data.batch import check_batch
from flowjax.data.digits import digits
from flowjax.data.mixtures import MixedSource, mix, mixed
from flowjax.data.pipeline import BatchIterator, evaluation_batches, make_iterator
from flowjax.data.points import checkerboard, mixture, moons, spirals
from flowjax.data.shapes import SceneSource, shapes
from flowjax.data.sources import ArraySource, PointSource, RecordSource, Source

SOURCES = {
    "mixture": mixture,
    "moons": moons,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "digits": digits,
    "shapes": shapes,
    "mix": mix,
}

__all__ = [
    "SOURCES",
    "ArraySource",
    "BatchIterator",
    "MixedSource",
    "PointSource",
    "RecordSource",
    "SceneSource",
    "Source",
    "check_batch",
    "evaluation_batches",
    "make_iterator",
    "mixed",
]
