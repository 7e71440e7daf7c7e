"""Differences from reference implementations are held to a tolerance and noted: experiments/parity makes receipts of them."""

import json
from importlib.metadata import version

import pytest


@pytest.fixture
def within(record_property):
    """within(what, package, difference, tolerance, measure): is difference <= tolerance? Both are noted."""

    def hold(what: str, package: str, difference: float, tolerance: float, measure: str = "largest difference") -> bool:
        noted = dict(what=what, against=f"{package} {version(package)}", measure=measure)
        record_property("comparison", json.dumps(dict(noted, difference=float(difference), tolerance=tolerance)))
        return bool(difference <= tolerance)

    return hold
