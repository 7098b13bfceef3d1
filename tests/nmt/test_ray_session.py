"""A Ray of our own, and what a profile may ask of this machine."""

from __future__ import annotations

import socket

import pytest
import torch

from nmt.config import RayConfig
from nmt.ray_session import check_gpus, cluster_address, gpus_of_training, is_on_the_loopback, ray_session
from pipelines.errors import InputError
from tests.nmt.listeners import listening


def test_a_ray_of_our_own_listens_on_the_loopback_alone_and_works() -> None:
    with ray_session(RayConfig(), num_cpus=1):
        import ray

        assert is_on_the_loopback()
        assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
        assert listening() == {"127.0.0.1"}


def test_sockets_of_all_interfaces_are_seen_by_the_test_above() -> None:
    with socket.create_server(("0.0.0.0", 0)):
        assert "0.0.0.0" in listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert listening() == {"127.0.0.1"}


def test_more_gpus_than_this_machine_has_are_refused_before_ray_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = RayConfig(use_gpu=True, num_workers=2, validation_workers=1)
    check_gpus(config, 2)
    with pytest.raises(InputError, match="3 GPUs are needed, one for each worker, and PyTorch finds 2") as raised:
        check_gpus(config, gpus_of_training(config))
    assert raised.value.where == "ray.use_gpu"
    check_gpus(config, gpus_of_training(config, use_ray=False))
    check_gpus(config.model_copy(update={"num_workers": 4, "min_workers": 1}), gpus_of_training(config) - 1)
    check_gpus(config.model_copy(update={"use_gpu": False}), 3)


def test_what_a_cluster_has_is_not_known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_gpus(RayConfig(use_gpu=True, address="ray://head:10001"), 8)
    with pytest.raises(InputError, match="1 GPU is needed"):
        check_gpus(RayConfig(use_gpu=True), 1)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_address(RayConfig()) == "head:6379"
    check_gpus(RayConfig(use_gpu=True), 8)
