"""Workers of one machine: on which addresses they listen, and what they compute."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nmt.loopback import loopback_variables
from nmt.training.json_lines import read_lines
from nmt.training.worker_log import LOG_FILE
from tests.nmt.conftest import ToyStages
from tests.nmt.listeners import listening
from tests.nmt.toy_runs import run_train


def test_while_two_workers_train_nothing_listens_beyond_the_loopback(toy: ToyStages, tmp_path: Path) -> None:
    found: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            found.update(listening())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        run = run_train(toy, tmp_path, workers=2)
    finally:
        done.set()
        thread.join()
    assert found == {"127.0.0.1"}
    assert run.manifest.counters["num_workers"] == 2
    assert read_lines(run.folder / LOG_FILE) == []  # what the worker of rank 0 has said


def test_an_interface_that_the_user_has_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert loopback_variables()["GLOO_SOCKET_IFNAME"] == "eth7"
    assert loopback_variables()["NCCL_SOCKET_IFNAME"] in ("lo", "lo0")
