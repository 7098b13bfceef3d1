"""Memory that is freed stays with the process."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from nmt.allocation import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_a_big_tensor_made_again_costs_no_page_faults() -> None:
    assert keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**24).sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    # 64 MiB are 16,384 pages.
    assert faults() < 1_000
