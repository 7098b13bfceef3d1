from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.process import ProcessFailed, run_process
from pipelines.errors import InputError

# A leader that starts a child which ignores SIGTERM, tells both their ids, and waits.
STUBBORN = """
import os, subprocess, sys, time
ignore = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", ignore])
time.sleep(0.3)
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def run(text: str) -> tuple[dict[str, object], list[str]]:
    lines: list[str] = []
    return run_process("the stage", script(text), lines.append, grace_s=0.5), lines


def gone(process_id: int) -> bool:
    """Whether a process has ended; one that nobody has asked about since counts as ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_json_object_is_the_result_and_every_other_line_is_passed_on() -> None:
    result, lines = run("""
import sys
print("epoch 1", flush=True)
print("loss 3", file=sys.stderr, flush=True)
print('{"folder": "x"}')
""")
    assert result == {"folder": "x"}
    assert sorted(lines) == ["epoch 1", "loss 3"]


def test_lines_arrive_while_the_process_runs() -> None:
    arrivals: list[float] = []
    text = "import time\nprint('first', flush=True)\ntime.sleep(1)\nprint('{}')"
    run_process("the stage", script(text), lambda _line: arrivals.append(time.monotonic()))
    assert time.monotonic() - arrivals[0] > 0.8


def test_exit_status_two_is_the_input_error_that_the_process_describes() -> None:
    text = """
import json
print(json.dumps({"error": {"what": "no line", "where": "a.txt", "remedy": "Fill it"}}))
raise SystemExit(2)
"""
    with pytest.raises(InputError) as raised:
        run(text)
    assert (raised.value.what, raised.value.where, raised.value.remedy) == ("no line", "a.txt", "Fill it")


def test_another_exit_status_is_a_failure_with_the_last_lines() -> None:
    with pytest.raises(ProcessFailed, match=r"the stage ended with exit status 3(.|\n)*out of memory") as raised:
        run("import sys\nprint('out of memory')\nsys.exit(3)")
    assert raised.value.status == 3


def test_a_killed_process_is_a_failure_that_names_the_signal() -> None:
    with pytest.raises(ProcessFailed, match="was killed by SIGKILL"):
        run("import os\nos.kill(os.getpid(), 9)")


def test_a_process_without_a_result_is_a_failure() -> None:
    with pytest.raises(ProcessFailed, match="no JSON object"):
        run("print('done')")


# A leader that, told to end, takes its time and then says whether its child, which SIGTERM would end, still lives.
SAVING = """
import os, signal, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def save(*_):
    time.sleep(0.5)
    Path({path!r}).write_text(str(child.poll() is None))
    os._exit(143)
signal.signal(signal.SIGTERM, save)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_process_may_save_before_what_it_has_started_is_ended(tmp_path: Path) -> None:
    ids: list[int] = []

    def interrupt(line: str) -> None:
        ids.append(int(line))
        raise KeyboardInterrupt

    saved = tmp_path / "saved"
    with pytest.raises(KeyboardInterrupt):
        run_process("the stage", script(SAVING.format(path=str(saved))), interrupt, grace_s=20)
    assert saved.read_text() == "True"
    assert gone(ids[0])


def test_an_interrupt_ends_the_whole_group() -> None:
    ids: list[int] = []

    def interrupt(line: str) -> None:
        ids.extend(int(part) for part in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_process("the stage", script(STUBBORN), interrupt, grace_s=0.5)
    assert len(ids) == 2
    assert all(gone(process_id) for process_id in ids)


def test_what_an_ended_process_leaves_behind_is_ended_too() -> None:
    text = STUBBORN.rpartition("time.sleep")[0]
    _result, lines = run(text + "print('{}')")
    assert gone(int(lines[0].split()[1]))


def test_the_group_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    stage = tmp_path / "stage.py"
    stage.write_text("from flows.process import end_with_parent\nend_with_parent()\n" + STUBBORN)
    starter = f"""
import sys
from flows.process import run_process
run_process("the stage", [sys.executable, {str(stage)!r}], lambda line: print(line, flush=True))
"""
    process = subprocess.Popen(script(starter), stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    ids = [int(part) for part in process.stdout.readline().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(ids) == 2
    assert all(gone(process_id) for process_id in ids)
