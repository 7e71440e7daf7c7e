"""Image features: frozen, published networks behind one FeatureExtractor, for distances, probes and alignment."""

from flowjax.models.features.efficientnet import efficientnet_lite0
from flowjax.models.features.extractor import FeatureExtractor, load_extractor
from flowjax.models.features.inception import inception_v3

EXTRACTORS = {"efficientnet_lite0": efficientnet_lite0, "inception_v3": inception_v3}

__all__ = ["EXTRACTORS", "FeatureExtractor", "efficientnet_lite0", "inception_v3", "load_extractor"]
