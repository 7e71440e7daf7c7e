"""Packages: whatever a package tool brings is checked, and every way it can fail has its message. No network."""

import dataclasses
import hashlib
import shutil
import subprocess
import zipfile

import pytest
from real_data import write_folder, write_tar

from flowjax.data.prepare import emoji, small
from flowjax.data.prepare.fetch import Package, PrepareError, content_hash, get_files

FILES = {"data/a.txt": b"one", "data/b.txt": b"two"}


def package(file, manager="npm", **changes):
    return dataclasses.replace(
        Package(
            name="toy-data",
            version="1.0.0",
            manager=manager,
            licence="MIT",
            attribution="nobody",
            archive=file.name,
            archive_hash=hashlib.sha256(file.read_bytes()).hexdigest(),
            files=("data/*.txt",),
            files_hash=content_hash(FILES),
            root="package",
        ),
        **changes,
    )


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "registry"
    folder.mkdir()
    members = [(f"package/{name}", content) for name, content in {**FILES, "other.txt": b"unused"}.items()]
    return write_tar(folder / "toy-data-1.0.0.tgz", members, "w:gz")


def tool(tmp_path, monkeypatch, name, script):
    """A package tool of our own, first on the path."""
    folder = tmp_path / "tools"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def silent(line):
    pass


def test_the_users_tool_fetches_once_and_the_archive_is_kept(tmp_path, monkeypatch, archive):
    tool(tmp_path, monkeypatch, "npm", f'echo "$@" >> {tmp_path}/calls; cp {archive} .')
    said = []
    for _ in range(2):
        assert get_files(package(archive), None, tmp_path / "store", said.append) == FILES
    assert (tmp_path / "calls").read_text() == "pack toy-data@1.0.0 --silent\n"
    assert said == ["fetching toy-data@1.0.0"]
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["toy-data-1.0.0.tgz"]


def test_what_the_tool_brings_is_checked(tmp_path, monkeypatch, archive):
    tool(tmp_path, monkeypatch, "npm", f"cp {archive} .")
    with pytest.raises(PrepareError, match=r"SHA-256 of the archive is [0-9a-f]{64}, expected 0123.*Delete it and run"):
        get_files(package(archive, archive_hash="0123"), None, tmp_path / "store", silent)
    with pytest.raises(PrepareError, match=r"hash of its 2 files used is [0-9a-f]{64}, expected 4567"):
        get_files(package(archive, files_hash="4567"), None, tmp_path / "store", silent)


def test_a_damaged_archive_in_the_store_is_fetched_again(tmp_path, monkeypatch, archive):
    tool(tmp_path, monkeypatch, "npm", f"cp {archive} .")
    store = tmp_path / "store"
    store.mkdir()
    (store / archive.name).write_bytes(archive.read_bytes()[:100])
    said = []
    assert get_files(package(archive), None, store, said.append) == FILES
    assert "It may be cut off" in said[0] and said[1] == "fetching toy-data@1.0.0"


def test_offline_says_what_to_run_where_there_is_a_network(tmp_path, monkeypatch, archive):
    tool(tmp_path, monkeypatch, "npm", "echo 'network timeout at the registry' >&2; exit 1")
    with pytest.raises(PrepareError) as caught:
        get_files(package(archive), None, tmp_path / "store", silent)
    message = str(caught.value)
    assert "network timeout at the registry" in message and "(exit 1)" in message
    assert "run `npm pack toy-data@1.0.0 --silent` in an empty folder" in message and "--from FOLDER" in message
    assert list((tmp_path / "store").iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PrepareError, match="'npm' is not on this machine.*--from FOLDER"):
        get_files(package(archive), None, tmp_path / "store", silent)


def test_from_a_folder_nothing_is_fetched(tmp_path, monkeypatch, archive):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    store = tmp_path / "store"
    assert get_files(package(archive), archive.parent, store, silent) == FILES
    for place in ("toy-data", "node_modules/toy-data", "package", "."):
        given = tmp_path / f"given {place.replace('/', ' ')}"
        write_folder(given / place, FILES)
        assert get_files(package(archive), given, store, silent) == FILES, place
    write_folder(given, {"data/a.txt": b"changed"})
    with pytest.raises(PrepareError, match="hash of its 2 files used"):
        get_files(package(archive), given, store, silent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrepareError, match="holds neither toy-data-1.0.0.tgz nor the unpacked package.*npm pack"):
        get_files(package(archive), tmp_path / "empty", store, silent)


def test_wheels(tmp_path):
    wheel = tmp_path / "toy_data-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for name, content in FILES.items():
            opened.writestr(f"package/{name}", content)
    assert get_files(package(wheel, "pip"), tmp_path, tmp_path / "store", silent) == FILES
    assert package(wheel, "pip").command[1:4] == ["-m", "pip", "download"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_packages(tmp_path):
    root = write_folder(tmp_path / "root", {f"package/{name}": content for name, content in FILES.items()})
    control = "Package: toy-data\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: toy\n"
    write_folder(root, {"DEBIAN/control": control.encode()})
    deb = tmp_path / "given" / "toy-data_1_all.deb"
    deb.parent.mkdir()
    subprocess.run(["dpkg-deb", "--build", str(root), str(deb)], check=True, capture_output=True)
    toy = package(deb, "apt", archive="toy-data_*.deb", archive_hash="")
    assert get_files(toy, deb.parent, tmp_path / "store", silent) == FILES
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(PrepareError, match="cannot be unpacked"):
        get_files(toy, deb.parent, tmp_path / "store", silent)


def test_every_package_of_the_project_is_pinned():
    for one in (emoji.NAMES, *emoji.STYLES.values(), small.FASHION, small.MNIST):
        assert len(one.files_hash) == 64 and one.licence and one.attribution
        assert len(one.archive_hash) == (0 if one.manager == "apt" else 64)
