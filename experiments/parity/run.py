"""Every comparison with a reference implementation, and how far apart the two were.

    python experiments/parity/run.py [--tiny] [--work DIR] [--out DIR]

The comparisons are the tests of tests/parity: they run here, and what they note on the way becomes receipts, one for each
thing compared with the worst case of it. They need `pip install -e ".[test,parity]"`; those of published weights also need
`python -m flowjax.data.prepare minilm` and `... efficientnet_lite0`, and are left out without them. `--tiny` compares paths
alone, and writes to the work folder.
"""

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree

from flowjax.evaluation.experiment import run_parts
from flowjax.evaluation.receipts import replace_receipts, sampler_free


def compare(options: argparse.Namespace) -> None:
    """Runs the tests and writes what they noted."""
    options.work.mkdir(parents=True, exist_ok=True)
    notes = options.work / "parity.xml"
    tests = "tests/parity/test_parity_paths.py" if options.tiny else "tests/parity"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-rs",
        tests,
        f"--junitxml={notes}",
        "-o",
        "junit_family=xunit1",
    ]
    if subprocess.run(command, cwd=options.root).returncode:
        raise RuntimeError("A comparison failed, or found nothing to compare with; what it said stands above.")
    worst: dict[tuple, dict] = {}
    for test in xml.etree.ElementTree.parse(notes).iter("testcase"):
        for noted in test.iter("property"):
            case = json.loads(noted.get("value"))
            key = case["what"], case["against"]
            before = worst.get(key, {"difference": -1.0, "cases": 0, "seconds": 0.0})
            bigger = case if case["difference"] > before["difference"] else before
            worst[key] = {
                **bigger,
                "cases": before["cases"] + 1,
                "seconds": before["seconds"] + float(test.get("time")),
            }
    if not worst:
        raise RuntimeError(
            'There is nothing to compare with here: pip install -e ".[test,parity]", then run this again.'
        )
    replace_receipts(options.out / "receipts", "parity", [receipt(case) for case in worst.values()])


def receipt(case: dict) -> dict:
    """A receipt of one thing compared."""
    about = {name: case[name] for name in ("what", "against", "measure", "tolerance")}
    return sampler_free(
        "parity",
        case["difference"],
        config=about,
        config_path="experiments/parity/run.py",
        seed=0,
        images_seen=0,
        seconds=case["seconds"],
        evaluator=case["measure"],
        samples=case["cases"],
        better="lower",
        **about,
    )


PARTS = {"parity": compare}


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparisons; returns the exit status."""
    return run_parts(__file__, PARTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
