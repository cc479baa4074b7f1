"""MirrorMaker 2's own code, from the Maven artifacts, in the JVMs that the other tests ask as well."""

import pytest

from tests.harness.java import JavaWitness
from tests.harness.mm2 import Mm2Witness


@pytest.fixture(scope="session")
def mm2(java4: JavaWitness) -> Mm2Witness:
    """MirrorMaker 2 of the newest Kafka 4."""
    return Mm2Witness(java4)


@pytest.fixture(params=["java3", "java4"])
def either_mm2(request: pytest.FixtureRequest) -> Mm2Witness:
    """A test that takes this runs twice: with MirrorMaker 2 of the newest Kafka 3 and of the newest Kafka 4."""
    return Mm2Witness(request.getfixturevalue(request.param))
