"""Emoji in three styles, each with the caption of Unicode's names: 10,946 pictures, split by base emoji.

File names are code points in hexadecimal, joined by '-'. Both sides of the join are written in upper case without FE0F,
which only asks for a coloured drawing. Names come with skin tones ("waving hand: dark skin tone").

Many pictures are near copies of others: five skin tones, a man and a woman and a person of each trade, the same person
facing right. All of one family go to one split, or the test pictures would have been seen in training.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator

from flowjax.data.listing import held_out
from flowjax.data.prepare.fetch import Package, get_files
from flowjax.data.prepare.plan import Example, Plan
from flowjax.data.record_format import BadPicture, decode_picture
from flowjax.data.resizing import resize
from flowjax.data.skipped import Skipped

NAMES = Package(
    name="emojibase-data",
    version="17.0.0",
    manager="npm",
    licence="MIT",
    attribution="Emojibase, Miles Johnson",
    archive="emojibase-data-17.0.0.tgz",
    archive_hash="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    files=("en/data.json",),
    files_hash="d7980b8f1f0294f5585ccc9b979f61eec19fd441727ee131c4c675fa03debbea",
    root="package",
)
STYLES = {
    "google": Package(
        name="emoji-datasource-google",
        version="16.0.0",
        manager="npm",
        licence="Apache-2.0 (art), MIT (package)",
        attribution="Noto Emoji, Google; packed by Cal Henderson",
        archive="emoji-datasource-google-16.0.0.tgz",
        archive_hash="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        files=("img/google/64/*.png",),
        files_hash="2475e99f005550ce579cb134b48590abb60d9335c4dfe7522a26d3727b479755",
        root="package",
    ),
    "twitter": Package(
        name="emoji-datasource-twitter",
        version="16.0.0",
        manager="npm",
        licence="CC-BY-4.0 (art), MIT (package)",
        attribution="Twemoji, Twitter and other contributors, CC-BY 4.0; packed by Cal Henderson",
        archive="emoji-datasource-twitter-16.0.0.tgz",
        archive_hash="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        files=("img/twitter/64/*.png",),
        files_hash="7f719a42fcd0e15d33ffdf6d703e8f2e5b4ec48a40a3731c766da6bffeadd995",
        root="package",
    ),
    "fluent": Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        manager="npm",
        licence="MIT",
        attribution="Fluent Emoji, Microsoft; packed by LobeHub",
        archive="lobehub-fluent-emoji-3d-1.1.0.tgz",
        archive_hash="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        files=("assets/*.webp",),
        files_hash="8978a3508bcdbe1d72a69446de2493725afe12c45312cec2b84d56c8cabf089c",
        root="package",
    ),
}
TEST_SHARE = 0.1  # of the families
JOINER, MALE, FEMALE, RIGHT = "200D", "2642", "2640", "27A1"
PEOPLE = {"1F468": "1F9D1", "1F469": "1F9D1"}  # man, woman -> person


def code(name: str) -> str:
    """Code points as both sides write them: upper case, without FE0F."""
    return "-".join(part for part in name.upper().split("-") if part != "FE0F")


def family(base: str) -> str:
    """What near copies share: the base emoji without gender and direction, men and women as persons."""
    parts = [PEOPLE.get(part, part) for part in base.split("-") if part not in (MALE, FEMALE, RIGHT)]
    while parts and parts[-1] == JOINER:
        parts.pop()
    return "-".join(parts)


def captions(data: str) -> dict[str, dict[str, object]]:
    """Code -> its caption, further words, family and group, of every emoji and skin-tone variant."""
    found = {}
    for entry in json.loads(data):
        for variant in (entry, *entry.get("skins", ())):
            found[code(variant["hexcode"])] = {
                "caption": variant["label"],
                "tags": entry.get("tags", []),
                "family": family(code(entry["hexcode"])),
                "group": entry.get("group", -1),
            }
    return found


def plan(given: pathlib.Path | None, store: pathlib.Path, say: Callable[[str], None], size: int = 64) -> Plan:
    """Joins pictures and captions, and decides what goes where.

    Args:
      given: a folder with the packages, None to fetch them.
      store: where fetched packages are kept.
      say: prints a line.
      size: pixels of a side; 64 is what two of the three styles are drawn at.
    """
    get = functools.partial(get_files, given=given, store=store, say=say, together=(NAMES, *STYLES.values()))
    names = captions(get(NAMES)["en/data.json"].decode("utf-8"))
    skipped, drawn = Skipped(), set()
    entries: dict[str, list[tuple[str, int, str, bytes]]] = {"train": [], "test": []}
    for index, (style, package) in enumerate(STYLES.items()):
        for name, content in sorted(get(package).items()):
            key = code(pathlib.PurePosixPath(name).stem)
            if key not in names:
                skipped.add("picture without a caption", f"{style} {pathlib.PurePosixPath(name).name}")
                continue
            drawn.add(key)
            split = "test" if held_out(f"emoji {names[key]['family']}", TEST_SHARE) else "train"
            entries[split].append((style, index, key, content))
    for key in sorted(set(names) - drawn):
        skipped.add("caption without a picture", f"{key} {names[key]['caption']}")

    def read(split: str, start: int, stop: int) -> Iterator[Example]:
        for style, index, key, content in entries[split][start:stop]:
            try:
                image = resize(decode_picture(content), (size, size, 3), "pad")
            except BadPicture as error:
                yield f"{style} {key}", error
                continue
            yield f"{style} {key}", {"image": image, "label": index, "style": style, "code": key, **names[key]}

    return Plan(
        name=f"emoji_{size}",
        command=f"python -m flowjax.data.prepare emoji --size {size}",
        counts={split: len(found) for split, found in entries.items()},
        read=read,
        sources=[package.described() for package in (*STYLES.values(), NAMES)],
        options={"size": size, "background": "white", "test_share_of_families": TEST_SHARE},
        labels=tuple(STYLES),
        group="style",
        skipped=skipped,
    )
