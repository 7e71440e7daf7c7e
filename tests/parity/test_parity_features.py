"""EfficientNet-Lite0 and Inception-v3 give the layers of their PyTorch originals, from the files that PyTorch writes."""

import importlib.util
import re

import jax
import numpy as np
import pytest

from flowjax.models import perceptual
from flowjax.models.features import EXTRACTORS, load_extractor
from flowjax.models.torch_files import read_tensors
from flowjax.models.weights import MissingWeights, find_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
MEASURE = "largest difference of a layer, over its root mean square"
# The blocks as they were published with EfficientNet-B0: repeats, kernel, stride, expansion, channels in and out. Lite0 is B0
# with relu6 for swish and without squeeze-and-excite (`se`), its stem and head of 32 and 1280 channels not scaled.
PUBLISHED = (
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
)


def published_blocks():
    """(kernel, stride, expansion, channels in, channels out) of each block: only a stage's first has stride and channels."""
    for stage in PUBLISHED:
        letters = dict(re.findall(r"([a-z]+)([0-9.]+)", stage))
        kernel, expansion, taken, given = (int(letters[letter]) for letter in "keio")
        for index in range(int(letters["r"])):
            yield kernel, 1 if index else int(letters["s"][0]), expansion, given if index else taken, given


class Reference(torch.nn.Module):
    """EfficientNet-Lite0 in plain PyTorch, with the parameter names of the published file."""

    def __init__(self):
        super().__init__()
        unit = torch.nn.Module
        norm = lambda channels: torch.nn.BatchNorm2d(channels, eps=1e-3)
        self._conv_stem, self._bn0 = torch.nn.Conv2d(3, 32, 3, 2, bias=False), norm(32)
        blocks = []
        for kernel, stride, expansion, taken, given in published_blocks():
            block, inner = unit(), taken * expansion
            if expansion > 1:
                block._expand_conv, block._bn0 = torch.nn.Conv2d(taken, inner, 1, bias=False), norm(inner)
            block._depthwise_conv = torch.nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
            block._bn1 = norm(inner)
            block._project_conv, block._bn2 = torch.nn.Conv2d(inner, given, 1, bias=False), norm(given)
            blocks.append(block)
        self._blocks = torch.nn.ModuleList(blocks)
        self._conv_head, self._bn1 = torch.nn.Conv2d(320, 1280, 1, bias=False), norm(1280)
        self._fc = torch.nn.Linear(1280, 1000)

    @staticmethod
    def same(convolution, x):
        """TensorFlow's SAME: the odd cell of padding goes to the end."""
        pads = []
        for side, taps, stride in reversed(list(zip(x.shape[2:], convolution.kernel_size, convolution.stride))):
            total = max((-(-side // stride) - 1) * stride + taps - side, 0)
            pads += [total // 2, total - total // 2]
        return convolution(torch.nn.functional.pad(x, pads))

    def forward(self, x):
        relu6 = torch.nn.functional.relu6
        x, found = relu6(self._bn0(self.same(self._conv_stem, x))), {}
        for index, block in enumerate(self._blocks):
            y = relu6(block._bn0(block._expand_conv(x))) if hasattr(block, "_expand_conv") else x
            y = relu6(block._bn1(self.same(block._depthwise_conv, y)))
            y = block._bn2(block._project_conv(y))
            x = found[f"b{index}"] = x + y if x.shape == y.shape else y
        found["pooled"] = relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return found


def randomised(module, seed=0):
    """Weights that keep activations near one, and normalisations that do something."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda value, scale: torch.randn(value.shape, generator=generator) * scale
    state = module.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.ndim == 4:
            state[name] = normal(value, (2 / np.prod(value.shape[1:])) ** 0.5)
        elif value.ndim >= 1:
            state[name] = normal(value, 0.1) + (1.0 if name.endswith("weight") and value.ndim == 1 else 0.0)
    module.load_state_dict(state)
    return module.eval()


def images(size, count=2):
    """Smooth pictures with structure at several scales."""
    coarse = np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)
    fine = 0.3 * np.random.default_rng(1).standard_normal((count, size, size, 3)).astype(np.float32)
    return np.clip(jax.image.resize(coarse, fine.shape, "cubic") + fine, -1, 1).astype(np.float32)


def deviation(ours, theirs) -> float:
    """The largest difference, over the layer's own root mean square."""
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    scale = np.sqrt(np.mean(theirs**2))
    assert ours.shape == theirs.shape
    # Neither dead nor exploded: the comparison says something.
    assert 1e-3 < scale < 1e3 and np.std(theirs) > 0.05 * scale
    return float(np.abs(np.asarray(ours) - theirs).max() / scale)


def efficientnet_deviations(reference, path, size) -> dict[str, float]:
    """Of each layer, from the PyTorch module."""
    extractor = EXTRACTORS["efficientnet_lite0"](input_size=size)
    x = images(size)
    ours = jax.jit(extractor.apply)(load_extractor(extractor, path), x)
    with torch.no_grad():
        theirs = reference(torch.from_numpy((((x + 1) / 2 * 255) - 127) / 128).permute(0, 3, 1, 2))
    assert {layer: value.shape[-1] for layer, value in ours.items()} == dict(extractor.channels)
    return {layer: deviation(ours[layer], theirs[layer]) for layer in extractor.channels}


@pytest.mark.parametrize("legacy", [False, True])
def test_efficientnet_with_random_weights(tmp_path, within, legacy):
    reference = randomised(Reference())
    torch.save(reference.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found = efficientnet_deviations(reference, tmp_path / "w.pth", 96 if legacy else 75)  # an even and an odd side
    assert within("EfficientNet-Lite0, random weights", "torch", max(found.values()), TOLERANCE, MEASURE)


def test_efficientnet_with_the_published_weights(within):
    try:
        path = find_weights("efficientnet_lite0")
    except MissingWeights as error:
        pytest.skip(str(error))
    state = torch.load(path, weights_only=True)
    ours = read_tensors(path)
    assert list(ours) == list(state)
    for name in state:
        np.testing.assert_array_equal(ours[name], state[name].numpy(), err_msg=name)
    reference = Reference()
    reference.load_state_dict(state)
    found = efficientnet_deviations(reference.eval(), path, 224)
    assert within("EfficientNet-Lite0, published weights", "torch", max(found.values()), TOLERANCE, MEASURE)


def test_inception_against_pytorch_fid(tmp_path, monkeypatch, within):
    for package in ("pytorch_fid", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from pytorch_fid import inception

    whole = randomised(inception._inception_v3(num_classes=1008, aux_logits=False, weights=None))
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: whole.state_dict())
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    theirs_of = inception.InceptionV3(output_blocks=(0, 1, 2, 3)).eval()
    extractor = EXTRACTORS["inception_v3"](antialias=False)
    tree = load_extractor(extractor, tmp_path / "w.pth")
    ours_of = jax.jit(extractor.apply)
    for size in (64, 320):  # one grows to 299, one shrinks
        x = images(size)
        with torch.no_grad():
            theirs = theirs_of(torch.from_numpy((x + 1) / 2).permute(0, 3, 1, 2))
        ours = ours_of(tree, x)
        pairs = [(ours[layer], their) for layer, their in zip(("pool1", "pool2", "mixed_6e"), theirs)]
        found = [deviation(*pair) for pair in (*pairs, (ours["pooled"], theirs[3][:, :, 0, 0]))]
        assert within("Inception-v3, random weights", "pytorch-fid", max(found), TOLERANCE, MEASURE)


def test_inception_against_torch_fidelity(tmp_path, within):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    names = ["64", "192", "768", "2048"]
    extractor = EXTRACTORS["inception_v3"]()
    generator = torch.Generator().manual_seed(1)
    state = {}
    for unit in extractor.units:
        rows, columns, taken, given = unit.kernel
        state[f"{unit.convolution}.weight"] = (
            torch.randn(given, taken, rows, columns, generator=generator) * (2 / (taken * rows * columns)) ** 0.5
        )
        for part in ("weight", "running_var"):
            state[f"{unit.norm}.{part}"] = torch.rand(given, generator=generator) + 0.5
        for part in ("bias", "running_mean"):
            state[f"{unit.norm}.{part}"] = torch.randn(given, generator=generator) * 0.1
        state[f"{unit.norm}.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    torch.save(state, tmp_path / "w.pth")
    theirs_of = module.FeatureExtractorInceptionV3("inception", names, str(tmp_path / "w.pth"))
    # At 299 nothing is resized, so TensorFlow's old resize, which torch-fidelity follows, makes no difference.
    pixels = np.rint((images(299) + 1) * 127.5).astype(np.uint8)
    with torch.no_grad():
        theirs = dict(zip(names, theirs_of(torch.from_numpy(pixels).permute(0, 3, 1, 2))))
    # It maps grey levels by (x - 128) / 128, where pytorch-fid and we map them by 2 x / 255 - 1.
    ours = jax.jit(extractor.apply)(
        load_extractor(extractor, tmp_path / "w.pth"), (pixels.astype(np.float32) - 128) / 128
    )
    layers = (("pool1", "64"), ("pool2", "192"), ("mixed_6e", "768"), ("pooled", "2048"))
    found = [deviation(extractor.vector(ours, layer), theirs[name]) for layer, name in layers]
    assert within("Inception-v3, random weights", "torch-fidelity", max(found), TOLERANCE, MEASURE)


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_lpips_against_its_package(tmp_path, monkeypatch, within, network):
    """The learnt weights are the package's own, the network's are random: no registry holds them."""
    package = pytest.importorskip("lpips")
    theirs = package.LPIPS(net=network, pnet_rand=True, verbose=False)
    backbone = perceptual.LPIPS[network]
    randomised(theirs.net)
    state = {
        f"features.{name.split('.', 1)[1]}": value for name, value in theirs.net.state_dict().items() if "." in name
    }
    folders = {name: tmp_path / "weights" / name for name in (backbone, f"lpips_{network}")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    torch.save(state, folders[backbone] / "w.pth")
    linear = {
        name: value for name, value in theirs.state_dict().items() if name.startswith("lin") and "lins" not in name
    }
    torch.save(linear, folders[f"lpips_{network}"] / "w.pth")
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    ours = perceptual.make_perceptual(dict(name="lpips", network=network))
    tree = ours.role.load()
    one, other = images(64, 4), images(64, 4)[::-1].copy()
    found = jax.jit(ours.distance)(tree, one, other)
    with torch.no_grad():
        tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (one, other)]
        expected = theirs(*tensors).numpy().reshape(-1)
    assert expected.min() > 1e-3
    what = f"LPIPS ({network}), its own learnt weights on a random network"
    assert within(what, "lpips", np.max(np.abs(found - expected) / expected), 1e-4, "largest relative difference")
