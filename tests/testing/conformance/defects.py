"""Runs one case of the suite against one filesystem, as pytest would, and says whether the case found fault."""

from __future__ import annotations

import pytest

from transfuse.testing.conformance import ReadWrite
from transfuse.testing.conformance.places import place


def finds_fault(case: str, filesystem, tmp_path, suite=ReadWrite) -> bool:
    """Does `case` fail?"""
    instance = suite()
    with place("direct", filesystem, tmp_path) as found:
        try:
            instance.populate(found.volume)
            getattr(instance, case)(found.volume)
        except (AssertionError, OSError, pytest.fail.Exception):
            return True
    return bool(found.ledger.problems())
