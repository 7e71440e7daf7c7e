"""Image features: frozen, published networks behind one FeatureExtractor, for distances, probes and alignment."""

from collections.abc import Callable, Sequence
from typing import Any

from flowjax.choices import Spec, build, choose
from flowjax.models.features.efficientnet import efficientnet_lite0
from flowjax.models.features.extractor import FeatureExtractor, Tree, load_extractor
from flowjax.models.features.inception import inception_v3
from flowjax.models.features.plain import alexnet, vgg16
from flowjax.models.weights import find_weights

EXTRACTORS = {
    "efficientnet_lite0": efficientnet_lite0,
    "inception_v3": inception_v3,
    "vgg16": vgg16,
    "alexnet": alexnet,
}

__all__ = [
    "EXTRACTORS",
    "FeatureExtractor",
    "chosen_map",
    "efficientnet_lite0",
    "inception_v3",
    "load_extractor",
    "open_extractor",
]


def chosen_map(spec: Spec) -> tuple[FeatureExtractor, str, Callable[[], Tree] | None]:
    """An extractor, the map of it that is wanted, and what loads its published weights; None where they are to be random.

    Args:
      spec: name and options of EXTRACTORS; `layer`, a map, the extractor's own choice unless told; `weights`, 'published'
        (which must be on this machine) or 'random', for tests.
    """
    options = dict(spec)
    name, layer, weights = options.pop("name"), options.pop("layer", None), options.pop("weights", "published")
    extractor, load = open_extractor(name, weights, layers=() if layer is None else (layer,), **options)
    return extractor, layer or extractor.layer, load


def open_extractor(
    name: str, weights: str = "published", input_size: int | None = None, layers: Sequence[str] = (), **options: Any
) -> tuple[FeatureExtractor, Callable[[], Tree] | None]:
    """An extractor, and what loads its published weights; None where they are to be random.

    Args:
      name: of EXTRACTORS.
      weights: 'published', which must be on this machine, or 'random', for tests.
      input_size: the side that images are resized to; the extractor's own unless told.
      layers: those that are to be read, which must be maps.
      **options: its others.
    """
    sized = {} if input_size is None else {"input_size": input_size}
    extractor = build("feature extractor", {"name": name, **sized, **options}, EXTRACTORS)
    for layer in layers:
        choose(f"map of {extractor.name}", layer, extractor.maps)
    if not choose("weights", weights, dict(published=True, random=False)):
        return extractor, None
    path = find_weights(extractor.name)
    return extractor, lambda: load_extractor(extractor, path)
