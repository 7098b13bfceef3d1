"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, whose heap is the same each time. glibc takes an aligned block of the size of one that it has
# just got back from elsewhere, until two that are free lie side by side: the first few are new.
_FAULTS = """
import resource
import torch
from nmt.allocation import keep_freed_memory

assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(sum([faults() for _ in range(40)][-10:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_a_big_tensor_made_again_costs_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    # 64 MiB are 16,384 pages, and were made ten times.
    assert int(done.stdout) < 1_000
