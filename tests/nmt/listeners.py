"""On which addresses processes listen."""

from __future__ import annotations

import contextlib

import psutil


def listening() -> set[str]:
    """Return the addresses on which this process and those that it has started listen."""
    own = psutil.Process()
    found = set()
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found
