"""The report: one page, one file, that shows how a run went. Made from the files of a run directory, at any moment.

    python -m flowjax.evaluation.report WORKDIR

The page loads nothing: styles, script, charts and pictures are inside it, and its content security policy forbids the
rest. It reads well on a phone, in the dark, on paper and without JavaScript. See run_files.py for the files it reads;
`status.json` is the trainer's word on how it ended, `samplers.json` holds every sampler's description and `grid_times`, and
`check.json` is what the pre-flight check found: [{"name", "passed", "detail", "fix"}, ...].
"""

import argparse
import importlib.resources
import os
import pathlib
import string
import sys
import time
from collections.abc import Sequence

from flowjax.evaluation import sections
from flowjax.evaluation.run_files import REPORT, write_atomically
from flowjax.evaluation.run_record import read_run

SECTIONS = (
    (
        "results",
        "Results",
        "The headline numbers, each beside what real data scores against other real data.",
        sections.results,
    ),
    ("samples", "Samples", "What each sampler draws as training goes on.", sections.pictures),
    ("curves", "Learning curves", "", sections.curves),
    (
        "along-t",
        "Along t",
        "Where the model still errs, and where training spends its examples against the times at which samplers ask "
        "the model.",
        sections.along_time,
    ),
    ("receipts", "Receipts", "How every number was made, in full.", sections.receipts_table),
    ("config", "Configuration", "What differs from the defaults.", sections.configuration),
)


def render(workdir: str | os.PathLike, status: str | None = None) -> str:
    """The page as text.

    Args:
      workdir: a run directory; whatever it lacks, the page says so.
      status: "finished", "running" or why the run stopped, when the caller knows; otherwise the files tell.
    """
    workdir = pathlib.Path(workdir).resolve()
    if not workdir.is_dir():
        raise FileNotFoundError(f"There is no run directory '{workdir.name}'. Give the --workdir of a run.")
    run = read_run(workdir)
    package = importlib.resources.files("flowjax.evaluation")
    template = lambda name: (package / name).read_text(encoding="utf-8")
    body = []
    for anchor, title, about, section in SECTIONS:
        about = f'<p class="about">{about}</p>\n' if about else ""
        body.append(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n<h2 id="{anchor}-title">{title}</h2>\n'
            f"{about}{section(run)}\n</section>\n"
        )
    links = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _, _ in SECTIONS)
    return string.Template(template("report.html")).substitute(
        title=sections.escape(f"{workdir.name} · FlowJAX"),
        style=template("report.css"),
        script=template("report.js"),
        header=sections.header(run, status),
        navigation=f"<ul>{links}</ul>",
        sections="".join(body),
        footer=f"Written by FlowJAX on {time.strftime('%Y-%m-%d at %H:%M UTC', time.gmtime())}.",
    )


def write_report(workdir: str | os.PathLike, status: str | None = None) -> pathlib.Path:
    """Writes report.html into a run directory, atomically, and returns its path."""
    path = pathlib.Path(workdir) / REPORT
    write_atomically(path, render(workdir, status))
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the reports of the run directories named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m flowjax.evaluation.report", description="One page about a run.")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    for workdir in parser.parse_args(arguments).workdirs:
        print(write_report(workdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
