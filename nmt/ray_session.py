"""A Ray to work on: that of the profile or of the job we are in, else one of our own that ends with us."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterator

from nmt.config import RayConfig
from pipelines.errors import InputError


@contextlib.contextmanager
def ray_session(config: RayConfig, *, num_cpus: int) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block; a Ray of our own has `num_cpus` logical CPUs at least.

    Inside a job (`ray job submit` sets RAY_ADDRESS) and where the profile names an address, that cluster is used. One
    of our own listens on the loopback only.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Train's controller looks at its workers this often (2 s unless told): it delays each start and end. Seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        yield
        return
    if address := cluster_address(config):
        ray.init(address=address, **quiet)
    else:
        with _on_the_loopback():
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


def cluster_address(config: RayConfig) -> str | None:
    """Return the address of the cluster to work on; None where a Ray of our own is to be started."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def is_on_the_loopback() -> bool:
    """Return whether all of the Ray that is connected runs on this machine, and listens on its loopback only."""
    import ray

    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def gpus_of_training(config: RayConfig, *, use_ray: bool = True) -> int:
    """Return how many GPUs training cannot begin without, where each worker has one."""
    return (config.min_workers or config.num_workers) + config.validation_workers if use_ray else 1


def check_gpus(config: RayConfig, gpus: int) -> None:
    """Raise InputError where processes on this machine need more GPUs than it has: Ray would wait for them for ever.

    What a cluster has is not looked at: it may grow.
    """
    if not config.use_gpu or cluster_address(config):
        return
    import torch

    if (found := torch.cuda.device_count()) < gpus:
        build = "" if torch.version.cuda or torch.version.hip else f"; this PyTorch, {torch.__version__}, is for CPUs"
        raise InputError(
            f"{gpus} GPU{'s are' if gpus > 1 else ' is'} needed, one for each worker, and PyTorch finds {found}{build}",
            where="ray.use_gpu",
            remedy="Lower ray.num_workers, ray.validation_workers or ray.translate_actors, or set ray.use_gpu: false",
        )


@contextlib.contextmanager
def _on_the_loopback() -> Iterator[None]:
    """Let a Ray that is started in a `with` block take the loopback for this machine's address.

    It does so on macOS and Windows, and has no option for it, but a constant that is made as it is imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
