"""A Ray to work on: that of the profile or of the job we are in, else one of our own that ends with us."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from nmt.config import RayConfig


@contextlib.contextmanager
def ray_session(config: RayConfig, *, num_cpus: int) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block; a Ray of our own has `num_cpus` logical CPUs at least.

    Inside a job (`ray job submit` sets RAY_ADDRESS) and where the profile names an address, that cluster is used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Train's controller looks at its workers this often (2 s unless told): it delays each start and end. Seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield
        return
    if address:
        ray.init(address=address, **quiet)
    else:
        ray.init(
            address="local",  # else a cluster that somebody else has started on this machine would be taken
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=config.object_store_memory_bytes,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()
