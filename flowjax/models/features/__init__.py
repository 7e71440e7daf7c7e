"""Image features: frozen, published networks behind one FeatureExtractor, for distances, probes and alignment."""

from collections.abc import Callable

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

__all__ = ["EXTRACTORS", "FeatureExtractor", "chosen_map", "efficientnet_lite0", "inception_v3", "load_extractor"]


def chosen_map(spec: Spec) -> tuple[FeatureExtractor, str, Callable[[], Tree] | None]:
    """An extractor, the map of it that is wanted, and what loads its published weights; None where they are to be random.

    Args:
      spec: name and options of EXTRACTORS; `layer`, a map, the extractor's own choice unless told; `weights`, 'published'
        (which must be on this machine) or 'random', for tests.
    """
    options = dict(spec)
    layer, weights = options.pop("layer", None), options.pop("weights", "published")
    extractor = build("feature extractor", options, EXTRACTORS)
    layer = extractor.layer if layer is None else layer
    choose(f"map of {extractor.name}", layer, {name: True for name in extractor.channels if name != "pooled"})
    if not choose("weights", weights, dict(published=True, random=False)):
        return extractor, layer, None
    path = find_weights(extractor.name)
    return extractor, layer, lambda: load_extractor(extractor, path)
