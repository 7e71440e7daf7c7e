"""Frechet, kernel and precision/recall figures equal those of pytorch-fid and torch-fidelity on the same features.

Both packages import torchvision and other packages for their networks alone; where those are missing, stand-ins let the
numeric functions be imported.
"""

import importlib
import importlib.util
import sys
from unittest import mock

import numpy as np
import pytest

from flowjax.evaluation import coverage, distances

torch = pytest.importorskip("torch")
for package in ("pytorch_fid", "torch_fidelity"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
pytestmark = pytest.mark.parity

RELATIVE = "relative difference"
NETWORKS_ONLY = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets")
NETWORKS_ONLY += ("PIL", "PIL.Image", "tqdm")


def numeric(module):
    """Imports a module, with stand-ins for what only its networks need; the stand-ins are taken away again."""
    stand_ins = [name for name in NETWORKS_ONLY if importlib.util.find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: mock.MagicMock() for name in stand_ins})
    try:
        return importlib.import_module(module)
    finally:
        for name in stand_ins:
            del sys.modules[name]


def relative(ours, theirs) -> float:
    return abs(float(ours) / float(theirs) - 1)


def features(seed, count, scale=1.0):
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(9).standard_normal((12, 12))
    return (scale * generator.standard_normal((count, 12)) @ mix + 0.3 * seed).astype(np.float32)


PAIRS = [(features(0, 300), features(1, 300, 1.3)), (features(2, 250), features(3, 250))]


@pytest.mark.parametrize("x, y", PAIRS)
def test_frechet_against_pytorch_fid(within, x, y):
    reference = numeric("pytorch_fid.fid_score").calculate_frechet_distance
    statistics = [(z.mean(0, dtype=np.float64), np.cov(z.astype(np.float64), rowvar=False)) for z in (x, y)]
    expected = reference(*statistics[0], *statistics[1])
    assert within("Frechet distance", "pytorch-fid", relative(distances.frechet(x, y), expected), 1e-6, RELATIVE)


@pytest.mark.parametrize("x, y", PAIRS)
def test_frechet_against_torch_fidelity(within, x, y):
    module = numeric("torch_fidelity.metric_fid")
    statistics = [module.fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    expected = module.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert within("Frechet distance", "torch-fidelity", relative(distances.frechet(x, y), expected), 1e-5, RELATIVE)


@pytest.mark.parametrize("x, y", PAIRS)
def test_one_kid_subset_against_torch_fidelity(within, x, y):
    options = {
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1.0,
    }
    expected = numeric("torch_fidelity.metric_kid").kernel_mmd(x.astype(np.float64), y.astype(np.float64), **options)
    assert float(distances._cubic_mmd(x, y)) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)


def test_kid_mean_over_subsets_against_torch_fidelity():
    x, y = PAIRS[0]
    module = numeric("torch_fidelity.metric_kid")
    result = module.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=200, kid_subset_size=100, verbose=False
    )
    ours = distances.kid(x, y, subsets=200, subset_size=100)
    expected, spread = (float(result[f"kernel_inception_distance_{name}"]) for name in ("mean", "std"))
    assert abs(ours.mean - expected) < 5 * spread / np.sqrt(200)
    assert ours.std == pytest.approx(spread, rel=0.3)


def test_the_gaussian_kernel_against_torch_fidelity(within):
    x, y = PAIRS[0]
    module = numeric("torch_fidelity.metric_kid")
    kernel = lambda a, b: module.kernel_rbf(a.astype(np.float64), b.astype(np.float64), kid_kernel_rbf_sigma=3.0)
    expected = module.mmd2(kernel(x, x), kernel(x, y), kernel(y, y))
    found = relative(distances.mmd(x, y, bandwidth=3.0), expected)
    assert within("kernel distance (Gaussian)", "torch-fidelity", found, 1e-3, RELATIVE)


@pytest.mark.parametrize("x, y", PAIRS)
def test_precision_and_recall_against_torch_fidelity(within, x, y):
    reference = numeric("torch_fidelity.metric_prc").calculate_precision_recall_full
    precision, recall = reference(torch.from_numpy(x), torch.from_numpy(y), neighborhood=3)  # generated first
    ours = coverage.precision_recall(x, y, k=3)
    for name, expected, count in (("precision", precision, len(x)), ("recall", recall, len(y))):
        samples = round(abs(ours[name] - float(expected)) * count)
        assert within(f"{name} by 3 neighbours", "torch-fidelity", samples, 2, "samples judged otherwise")
