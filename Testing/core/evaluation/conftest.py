"""A protocol and the records of an undisturbed run of it, made once."""

from __future__ import annotations

import pytest

from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.running import run
from Testing.core.evaluation.protocols import small


@pytest.fixture(scope="session")
def protocol() -> Protocol:
    return Protocol.from_dict(small())


@pytest.fixture(scope="session")
def reference(protocol, tmp_path_factory) -> list[dict]:
    """The records of a run in this process."""
    return run(protocol, tmp_path_factory.mktemp("reference"), workers=0)
