"""The sanitizers as tests: a taste of the fuzzers in every run, everything under `soak`. See tests/sanitize.py."""

import shutil
import sys

import pytest

from tests.sanitize import TARGETS, fuzz, run_native_tests

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="the sanitizers' runtime is gcc's, on Linux"
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_fuzzer_finds_nothing_in_a_few_seconds(tmp_path, target):
    assert fuzz(target, tmp_path, seconds=3, seed=1) > 1_000


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_the_native_tests_hold_under_the_sanitizers(tmp_path):
    said = run_native_tests(tmp_path)
    assert " passed" in said
    assert "skipped" not in said


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_fuzzer_finds_nothing_in_minutes(tmp_path, target, seed):
    assert fuzz(target, tmp_path, seconds=300, seed=seed) > 100_000
