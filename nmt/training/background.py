"""A thread that works beside a `with` block, and ends with it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside_block(name: str, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have a thread do some work beside a `with` block, at whose end the event is set and the thread waited for."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
