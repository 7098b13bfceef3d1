"""Steps in several processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pipelines.config import BeamConfig
from pipelines.processes import MAX_KILLED, each, processes_closed
from pipelines.runner import local_processes


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with processes_closed():
        yield


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def killed_at(folder: Path, deaths: int, number: int) -> int:
    """Return the number, but kill the worker the first times that it is asked for 3."""
    mark = folder / str(number)
    times = int(mark.read_text()) if mark.exists() else 0
    mark.write_text(str(times + 1))
    if number == 3 and times < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def failing(number: int) -> int:
    if number == 2:
        raise ValueError("two is too much")
    return number


def test_each_element_is_done_once_and_elsewhere() -> None:
    results = list(each(square, range(20), 2))
    assert sorted(result for result, _ in results) == [number * number for number in range(20)]
    assert os.getpid() not in {process for _, process in results}


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    assert sorted(each(partial(killed_at, tmp_path, 2), range(8), 2)) == list(range(8))


def test_a_step_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"killed 4 times.*beam\.processes"):
        list(each(partial(killed_at, tmp_path, MAX_KILLED + 1), range(8), 2))


def test_what_a_step_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="two is too much"):
        list(each(failing, range(50), 2))


_SCRIPT = """
import os, sys, time
from pathlib import Path
from pipelines.processes import each

def step(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(each(step, range(4), 2))
"""


def runs(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_with_the_process_that_they_work_for(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "workers"
    script.write_text(_SCRIPT)
    folder.mkdir()
    launcher = subprocess.Popen([sys.executable, str(script), str(folder)])
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    while any(runs(path.name) for path in folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_there_are_no_more_processes_than_pieces() -> None:
    assert local_processes(BeamConfig(processes=8), 3) == 3
    assert local_processes(BeamConfig(processes=2), 3) == 2
    assert local_processes(BeamConfig(processes=2), 0) == 1


def test_other_runners_see_to_their_processes_themselves() -> None:
    assert local_processes(BeamConfig(runner="FlinkRunner", processes=4), 10) == 1
    own = BeamConfig(processes=4, options={"direct_running_mode": "multi_processing", "direct_num_workers": 2})
    assert local_processes(own, 10) == 1
