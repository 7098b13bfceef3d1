"""SIGTERM of the real command while it trains: a checkpoint behind the next update, and the next command continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nmt.checkpoint import read_state, training_checkpoints
from tests.system.test_main_job import corpus_and_recipe, run, seqloom

# Long enough to be stopped, and no checkpoint but those of the ends of epochs and of the stop.
TRAINING = [
    part
    for setting in ("max_epochs=6", "log_updates=1", "checkpoint_updates=null", "microbatch_tokens=128")
    for part in ("--set", f"train.{setting}")
]
PATIENCE_S = 400


def until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.02)


def updates_recorded(runs: Path) -> int:
    files = [path.read_bytes() for path in runs.glob("stages/train-*/metrics.jsonl")]
    return sum(line.startswith(b'{"kind": "train"') for file in files for line in file.split(b"\n")[:-1])


def saved_update(runs: Path) -> int:
    newest = training_checkpoints(next(runs.glob("stages/train-*")) / "checkpoints")[-1]
    state = read_state(newest)
    assert state.stopped is None
    return state.update


def test_sigterm_of_train_saves_and_the_same_command_continues_where_it_was(tmp_path: Path) -> None:
    arguments = [*corpus_and_recipe(tmp_path), *TRAINING]
    runs = tmp_path / "runs"
    run("prepare", *arguments)
    command = seqloom("train", *arguments, "--no-ray", "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(process, lambda: updates_recorded(runs) >= 2)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, stderr
    update = saved_update(runs)
    message = f"stopped by SIGTERM, saved at update {update:,}; the same command continues"
    assert json.loads(stdout.splitlines()[-1]) == {"error": message}
    assert f"error: {message}" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    answer = json.loads(run("train", *arguments, "--no-ray", "--json").stdout.splitlines()[-1])
    counters = answer["train"]["counters"]
    assert counters["epochs"] == 6
    assert counters["updates"] > update
    assert counters["ledger"]["updates_again"] == 0


@pytest.mark.slow
def test_sigterm_of_run_leaves_training_the_time_to_save(tmp_path: Path) -> None:
    arguments = [*corpus_and_recipe(tmp_path), *TRAINING]
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        seqloom("run", *arguments), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    until(process, lambda: updates_recorded(runs) >= 2)
    before = updates_recorded(runs)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, stderr[-3000:]
    assert "interrupted; the same command continues" in stderr
    assert saved_update(runs) >= before
    assert not list(runs.glob("stages/train-*/manifest.json"))
