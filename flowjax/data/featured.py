"""Pictures with what a frozen encoder sees in them, computed once: batches bring `features` for representation alignment.

    featured(source=dict(name="emoji", flip=False), folder="cache/b4", encoder=dict(name="efficientnet_lite0", layer="b4"))

The first start fills the cache (and goes on where it was cut off), later ones read it; a cache of another source or encoder
is refused. Features are those of the pictures as they are stored, so a source that augments its pictures is refused too.
Latents go around it: latents(source=dict(name="featured", ...)) keeps the features of the pictures beside their latents.
"""

import jax
import numpy as np

from flowjax.choices import Spec, build
from flowjax.data.cached import JoinedSource, with_cache
from flowjax.data.caches import build_cache, encoder_parts
from flowjax.data.sources import ArraySource, RecordSource
from flowjax.models.features import chosen_map


def featured(
    source: Spec,
    folder: str,
    encoder: Spec,
    float_type: str = "float16",
    chunk: int = 32,
    seed: int = 0,
    total_steps: int | None = None,
) -> ArraySource | RecordSource | JoinedSource:
    """A source of pictures without augmentations, with their features from a cache.

    Args:
      source: the spec of the pictures, as in `config.data`.
      folder: where the cache lies, or shall lie.
      encoder: an image network and one of its maps: see models.features.chosen_map.
      float_type: how features are stored: float16, or float32 for twice the room.
      chunk: pictures that are encoded in one call.
      seed: of the run, for sources that take it.
      total_steps: the length of the run, likewise.
    """
    from flowjax.data import SOURCES  # this source is one of them

    pictures = build("data source", source, SOURCES, seed=seed, total_steps=total_steps)
    if pictures.size is None:
        raise ValueError(
            f"The source '{source['name']}' has no end, so its features cannot be kept: its pictures never come again. Let the "
            "loss compute them: method.alignment.encoder."
        )
    extractor, layer, load = chosen_map(encoder)
    tree = extractor.init(jax.random.key(0)) if load is None else load()
    program = jax.jit(lambda tree, images: extractor.apply(tree, images)[layer])

    def encode(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images, count = rows["data"], len(rows["data"])
        filled = np.concatenate([images, np.repeat(images[-1:], chunk - count, axis=0)])  # one shape, one program
        return {"features": np.asarray(program(tree, filled))[:count]}

    options = {key: value for key, value in encoder.items() if key not in ("name", "layer", "weights")}
    parts = encoder_parts(extractor.name, tree, layer=layer, **options)
    return with_cache(pictures, build_cache(folder, pictures, encode, parts, batch_size=chunk, float_type=float_type))
