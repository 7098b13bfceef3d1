"""A stage as a process of its own: started, listened to, and ended with everything that it has started.

The process leads a session, and so a process group, of its own. Its standard input is a pipe that is never written to:
when the process that started it is gone, however it went, the pipe closes, and `end_with_parent` ends the group.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

from pipelines.errors import InputError

GRACE_S = 10.0  # between asking a process to end and ending it
LEFTOVER_GRACE_S = 2.0  # the same for what it leaves behind in its group
POLL_S = 0.1
KEPT_LINES = 20
INPUT_STATUS = 2  # exit status of bad input, as of the command
# Of a command that was told by a signal to stop, and has: 128 and the signal's number, as shells have it.
STOPPED_STATUSES = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A command that SIGTERM has ended as Ctrl-C does."""


class ProcessFailed(RuntimeError):
    """A process that ended with a status that is neither 0 nor that of bad input; a negative one is a signal."""

    def __init__(self, name: str, status: int, last_lines: Sequence[str]) -> None:
        ending = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        super().__init__(f"{name} {ending}. Its last lines:\n" + "\n".join(f"    {line}" for line in last_lines))
        self.status = status


@dataclass(frozen=True)
class _Ended:
    status: int
    result: dict[str, Any] | None
    last_lines: tuple[str, ...]


def run_process(
    name: str, command: Sequence[str], on_line: Callable[[str], None], *, grace_s: float = GRACE_S
) -> dict[str, Any]:
    """Return the JSON object that a command wrote to its standard output, having given every other line to `on_line`.

    The whole process group is ended before this returns or raises, whatever is raised: an exception of `on_line`, a
    KeyboardInterrupt or a cancellation too. Raises InputError for exit status 2, ProcessFailed for any other but 0.
    """
    ended = _listen(command, on_line, grace_s)
    error = (ended.result or {}).get("error")
    if ended.status == INPUT_STATUS:
        raise _input_error(name, error, ended.last_lines)
    if ended.status != 0:
        raise ProcessFailed(name, ended.status, ended.last_lines)
    if ended.result is None:
        raise ProcessFailed(name, ended.status, (*ended.last_lines, "(it wrote no JSON object to its standard output)"))
    return ended.result


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Interrupted in a `with` block: as with Ctrl-C, what was started and what is temporary goes."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Watch standard input in a thread and end the own process group when it closes: the starter is gone.

    To be called by the leader of a group whose standard input is the pipe of `run_process`. SIGKILL, because nobody
    is left to wait for a polite end; a stage that is killed continues or starts again at the next run.
    """

    def watch() -> None:
        # os.read and not sys.stdin, whose lock would be held when the interpreter shuts down.
        while os.read(0, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _listen(command: Sequence[str], on_line: Callable[[str], None], grace_s: float) -> _Ended:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    lines: queue.SimpleQueue[tuple[bool, str]] = queue.SimpleQueue()
    readers = (_reader(process.stdout, lines, is_stdout=True), _reader(process.stderr, lines, is_stdout=False))
    result: dict[str, Any] | None = None
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        running = True
        while running:
            running = process.poll() is None
            if not running:
                # What it left behind in its group could hold the pipes open; what left the group gets this time only.
                end_group(process, LEFTOVER_GRACE_S)
                for reader in readers:
                    reader.join(LEFTOVER_GRACE_S)
            for is_stdout, line in _waiting(lines):
                found = _json_object(line) if is_stdout else None
                if found is not None:
                    result = found
                else:
                    last_lines.append(line)
                    on_line(line)
        return _Ended(process.returncode, result, tuple(last_lines))
    except BaseException:
        end_group(process, grace_s)
        raise
    finally:
        if process.stdin is not None:
            process.stdin.close()


def end_group(process: subprocess.Popen[str], grace_s: float) -> None:
    """End a process and all of its group. Returns when the process has ended.

    SIGTERM goes to the process alone, and when it has ended, or the grace is over, to whatever is left of its group,
    which soon gets SIGKILL: training saves first, for which it needs the Ray that it has started in its group.
    """
    if process.poll() is None:
        process.terminate()
        _wait_until(lambda: process.poll() is not None, grace_s)
    _signal_group(process, signal.SIGTERM)
    _wait_until(lambda: not _group_lives(process), min(grace_s, LEFTOVER_GRACE_S))
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _wait_until(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not reached():
        time.sleep(POLL_S / 4)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _group_lives(process: subprocess.Popen[str]) -> bool:
    process.poll()  # an ended child that nobody asks about stays in its group
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _reader(stream: IO[str] | None, lines: queue.SimpleQueue[tuple[bool, str]], *, is_stdout: bool) -> threading.Thread:
    assert stream is not None

    def read() -> None:
        with stream:
            for line in stream:
                lines.put((is_stdout, line.rstrip("\n")))

    thread = threading.Thread(target=read, name="read-lines", daemon=True)
    thread.start()
    return thread


def _waiting(lines: queue.SimpleQueue[tuple[bool, str]]) -> list[tuple[bool, str]]:
    """Return the lines that wait, after a short time for the first of them."""
    found = []
    with suppress(queue.Empty):
        found.append(lines.get(timeout=POLL_S))
        while True:
            found.append(lines.get_nowait())
    return found


def _json_object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _input_error(name: str, error: Any, last_lines: Sequence[str]) -> InputError:
    if isinstance(error, dict) and {"what", "where", "remedy"} <= error.keys():
        return InputError(error["what"], where=error["where"], remedy=error["remedy"])
    return InputError(" / ".join(last_lines), where=name, remedy="See the message")
