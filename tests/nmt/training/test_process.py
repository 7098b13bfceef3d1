"""How a process is set up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nmt.training.process import own_device, set_up_process
from tests.nmt.test_carrier import job_in


def test_the_gpu_of_a_process_is_one_that_torch_can_be_set_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", taken.append, raising=False)
    with pytest.raises(ValueError, match="specified index"):
        torch.cuda.set_device(torch.device("cuda"))
    precision = torch.get_float32_matmul_precision()
    try:
        set_up_process(job_in(tmp_path), own_device(use_gpu=True))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert taken == [0]
    assert own_device(use_gpu=False) == torch.device("cpu")
