"""Tar archives in the WebDataset manner (flowjax/data/webdataset.py) as a prepared set."""

import pathlib
from collections.abc import Callable

from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.folder import listing_plan
from flowjax.data.prepare.plan import Plan
from flowjax.data.webdataset import archives_of, list_archives, stamps


def plan(
    given: pathlib.Path | None,
    store: pathlib.Path,
    say: Callable[[str], None],
    size: int = 0,
    fit: str = "crop",
    called: str = "",
    test_share: float = 0.05,
) -> Plan:
    """The pictures and captions of a folder of archives.

    Args:
      given: the folder.
      store: not used: nothing is fetched.
      say: prints a line.
      size: pixels of a side; 0 keeps every file as it is.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      called: the name of the prepared set; the folder's by default.
      test_share: the share of names held out.
    """
    if given is None:
        raise PrepareError("Preparing archives needs --from FOLDER, the folder that holds the .tar files.")
    archives = list_archives(str(given), test_share=test_share)
    facts = stamps(archives_of(str(given)))
    return listing_plan("webdataset", given, archives.listing, archives.read, facts, size, fit, called, test_share)
