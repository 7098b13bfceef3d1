"""What all tests share: quiet libraries, no test by the clock, and one Prefect server with a temporary home."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

_TEMPORARY: list[str] = []

# Read by the libraries at their import, and inherited by the processes that tests start.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
}


# A machine may have much else to do: how long an example takes says nothing.
settings.register_profile("seqloom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("seqloom")


def pytest_configure(config: pytest.Config) -> None:
    home = tempfile.mkdtemp(prefix="seqloom-prefect-")
    _TEMPORARY.append(home)
    os.environ.update(ENVIRONMENT, PREFECT_HOME=home)
    for name in ("PREFECT_API_URL", "RAY_ADDRESS"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    while _TEMPORARY:
        shutil.rmtree(_TEMPORARY.pop(), ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server on a port of this machine, with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
