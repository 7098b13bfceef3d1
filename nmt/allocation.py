"""How the C library hands out memory to torch on a CPU."""

from __future__ import annotations

import ctypes
import logging
import sys

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MOST_BYTES = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


def keep_freed_memory() -> bool:
    """Keep what is freed for what comes next, in this process; return whether the C library can.

    glibc gives a big block back to the kernel when it is freed, so that each new tensor of some megabytes is mapped,
    zeroed and faulted in page by page: a quarter of the time of a training step of 2,000 pieces. Only Linux with glibc
    is told otherwise; elsewhere nothing is changed.
    Source: mallopt(3).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_MMAP_THRESHOLD, _MOST_BYTES), (_M_TRIM_THRESHOLD, _MOST_BYTES), (_M_TOP_PAD, _TOP_PAD_BYTES))
    accepted = [bool(mallopt(option, value)) for option, value in options]
    log.debug("mallopt accepted %s", accepted)
    return all(accepted)
