"""The command: python -m flowjax.data.prepare NAME [--from FOLDER] [--to FOLDER] [--size PIXELS]."""

import argparse
import inspect
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from flowjax import disk
from flowjax.choices import suggestion
from flowjax.data.prepare import emoji, folder, shards, small, tfds, weights
from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.plan import Plan
from flowjax.data.prepare.write import write_plan
from flowjax.data.records import data_home
from flowjax.data.tfds import UnknownName

PLANS: dict[str, Callable[..., Plan]] = {
    "emoji": emoji.plan,
    "fashion_mnist": small.fashion_mnist,
    "mnist_small": small.mnist_small,
    "folder": folder.plan,
    "webdataset": shards.plan,
}

DESCRIPTION = """Prepares a data set: fetches it by package name or takes it from a folder, checks it, and writes
ArrayRecord files with a card. Names: emoji, fashion_mnist, mnist_small, folder and webdataset (these two with --from),
or any TFDS name such as cifar10 or oxford_flowers102:2.1.1. A run that was cut off goes on where it stopped.
The names efficientnet_lite0, which measures image distances, and minilm, which reads captions, fetch their published
weights."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(prog="python -m flowjax.data.prepare", description=DESCRIPTION)
    options.add_argument("name", help="emoji, fashion_mnist, mnist_small, folder, webdataset, or a TFDS name")
    options.add_argument(
        "--from", dest="given", type=pathlib.Path, help="take the data from this folder; fetch nothing"
    )
    options.add_argument("--to", type=pathlib.Path, help="write to this folder; by default one in $FLOWJAX_DATA")
    options.add_argument("--size", type=int, help="pixels of a side; pictures of a folder keep their files without it")
    options.add_argument("--fit", choices=("crop", "pad"), help="how pictures of a folder or a TFDS name become square")
    options.add_argument("--called", help="the name of the prepared set, for folder and webdataset")
    options.add_argument("--test-share", type=float, help="the share held out where the data has no test split")
    return options


def run(arguments: Sequence[str], say: Callable[[str], None] = print) -> dict:
    """Prepares what the arguments ask for and returns the card.

    Args:
      arguments: as on the command line.
      say: prints a line.
    """
    given = parser().parse_args(arguments)
    build = None if given.name in weights.PACKAGES else PLANS.get(given.name, tfds.plan)
    offered = {"size": given.size, "fit": given.fit, "called": given.called, "test_share": given.test_share}
    chosen = {name: value for name, value in offered.items() if value is not None}
    if build is tfds.plan:
        chosen["name"] = given.name
    parameters = {} if build is None else inspect.signature(build).parameters
    useless = [name for name in chosen if name not in parameters]
    if useless:
        raise PrepareError(f"'{given.name}' has no option --{useless[0].replace('_', '-')}. Leave it out.")
    if chosen.get("size", 1) < 1:
        raise PrepareError(f"--size {given.size}: give a positive number of pixels.")
    if not 0 <= chosen.get("test_share", 0) < 1:
        raise PrepareError(f"--test-share {given.test_share}: give a share from 0 up to 1, 1 excluded.")
    if given.given is not None and not given.given.exists():
        raise PrepareError(f"--from {given.given} is not there. Give the folder that holds the data.")
    if build is None:
        return weights.prepare_weights(given.name, given.given, given.to, data_home() / "packages", say)
    try:
        plan = build(given.given, data_home() / "packages", say, **chosen)
    except UnknownName as error:
        own = suggestion(given.name, [*PLANS, *weights.PACKAGES])
        raise PrepareError(f"There is no data set '{given.name}'.{own}" if own else str(error)) from error
    return write_plan(plan, given.to or data_home() / plan.name, say)


def main() -> int:
    """Runs the command; returns its exit status."""
    start = time.monotonic()
    try:
        with disk.told(data_home(), "Make room and run this command again, or choose another place with FLOWJAX_DATA."):
            run(sys.argv[1:], lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare: stopped; run the same command again to go on from here.", file=sys.stderr)
        return 130
    print(f"{time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
