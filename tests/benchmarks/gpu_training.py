"""Training's speed on a GPU: target pieces a second, the share of the peak that is used, and where the time goes.

    PYTHONPATH=. python tests/benchmarks/gpu_training.py            # all of it; fewer --tokens need less memory
    PYTHONPATH=. python tests/benchmarks/gpu_training.py --tokens 4096 --models transformer --modes eager graphs

Needs torch, numpy, pyarrow, sentencepiece, safetensors and pydantic; no Ray, Beam or Prefect, and no data: lengths are
drawn, log-normal with median 27 and sigma 0.6, the target 1.06 times the source with sigma 0.16 (as 10,000 pairs of
English and German news have after BPE), ids at random. A batch has the shape of its bucket, rows x bucket is at most
--tokens.

Modes: `eager` is training's own update (nmt/training/step.py). `static` is the same update without a wait for the GPU:
shapes are the bucket's, real positions are picked by a list of fixed size that the host makes, clipping stays on the
GPU. `compiled` is static with its forward pass through torch.compile, for each bucket anew. `graphs` is static,
captured as one CUDA graph for each bucket. All do the same updates with the same noise: `agreement` is the cosine of
the weights' change over the first update of each bucket with that of `eager`. It is near 1, or something is wrong.

MFU is model FLOPs over time over the peak (Chowdhery et al. 2022, "PaLM", appendix B). Model FLOPs are those of the
products over real pieces, 2 for a multiplication and its addition, forward, and twice that for the gradients (see
nmt/model/flops.py). A pair's are a polynomial of the second degree in its lengths, which six counts determine; with
S and T pieces, d and h units, f of the feed-forward, E of embeddings, L layers, V pieces in all, and 0 or E fed:

    transformer  S L_e (8 d^2 + 4 d f) + T L_d (12 d^2 + 4 d f) + 4 S L_d d^2
                 + 4 d (S^2 L_e + T^2 L_d + S T L_d) + 2 T d V
    recurrent    8 S h (E + h/2) + 12 S h^2 (L_e - 1) + 2 S h^2 (keys) + T (8 h (E + fed + h) + 16 h^2 (L_d - 1)
                 + 2 h^2 (query, additive only) + 4 h E (attentional vector) + 2 E V) + 4 S T h + 4 h^2 L_d

Peaks are NVIDIA's figures for dense products (data sheets of the A100, H100 and H200; those with sparsity are twice as
high); `tf32` is float32 with products in TF32. Prints a table, what the profiler saw of one bucket, and one line of
JSON. Each model and precision has a process of its own. With --device cpu it only shows that it runs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_updates import BUCKETS, Batch, Update, describe, forward_flops, make_batches, new_run, update_of, weights
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from nmt.architectures import model_table
from nmt.config import ModelTable
from nmt.model.flops import TRAINING_FACTOR
from nmt.model.seq2seq import Seq2Seq

_RECURRENT: dict[str, Any] = {"embedding_dim": 512, "hidden_dim": 1024, "encoder_layers": 2, "decoder_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "additive-feeding": {**_RECURRENT, "attention": "additive", "input_feeding": True},
    "general": {**_RECURRENT, "attention": "general", "input_feeding": False},
    "transformer": {"architecture": "transformer", "dropout": 0.1},  # its defaults are the base model's sizes
}
TINY: dict[str, Any] = {"embedding_dim": 32, "encoder_layers": 2, "decoder_layers": 2}
TINY_SIZES = {"recurrent": {"hidden_dim": 64}, "transformer": {"feed_forward_dim": 64, "attention_heads": 4}}
MODES = ("eager", "static", "compiled", "graphs")  # in this order: after a graph that fails nothing can be trusted
# A loop over steps, which the compiler would unroll for each bucket: compiled only where asked for.
STEPWISE = {"additive-feeding"}
PROFILED_BUCKET = 32
PROFILED_UPDATES = 5

# Of part of a device's name, the first that fits: TFLOP/s of dense products by precision.
PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200", {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9}),
    ("H100 PCIe", {"bfloat16": 756.0, "tf32": 378.0, "float32": 51.2}),
    ("H100", {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9}),
    ("A100", {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5}),
)


@dataclass
class Result:
    """Of one model, precision and mode. Rates: the median, least and most of the passes over the batches.

    `setup_seconds`: from building the model to the end of the first update of each bucket.
    """

    model: str
    precision: str
    mode: str
    target_pieces_per_s: float = 0.0
    least: float = 0.0
    most: float = 0.0
    milliseconds_per_update: float = 0.0
    mfu: float | None = None
    memory_gb: float = 0.0
    setup_seconds: float = 0.0
    last_loss: float = 0.0
    agreement: float = 1.0
    graph_breaks: int = 0
    training_flops_per_piece: float = 0.0
    error: str = ""


def main() -> None:
    options = arguments().parse_args()
    pairs = list(itertools.product(options.models, options.precisions))
    if len(pairs) == 1:
        results, profiles = measured(*pairs[0], options)
    else:
        reports = [apart(model, precision) for model, precision in pairs]
        results = [Result(**result) for report in reports for result in report["results"]]
        profiles = [profile for report in reports for profile in report["profiles"]]
    name, peaks = device_of(options)
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, peak TFLOP/s {peaks or 'unknown'}\n")
    print_tables(results, profiles)
    found = {"device": name, "torch": torch.__version__, "peak_tflops": peaks, "tokens": options.tokens}
    print(json.dumps(found | {"results": [asdict(result) for result in results], "profiles": profiles}))
    sys.exit(any(result.error for result in results))


def apart(model: str, precision: str) -> dict[str, Any]:
    """Return what this script says of one model and precision in a process of its own, which alone an error spoils."""
    # Of an argument that is given twice the last one counts.
    command = [sys.executable, __file__, *sys.argv[1:], "--models", model, "--precisions", precision]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = ended.stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        report: dict[str, Any] = json.loads(lines[-1])
        return report
    failed = Result(model, precision, "all", error=f"the process ended with status {ended.returncode}")
    return {"results": [asdict(failed)], "profiles": []}


def measured(model: str, precision: str, options: argparse.Namespace) -> tuple[list[Result], list[dict[str, Any]]]:
    """Return the figures of all modes of one model and precision."""
    device = torch.device(options.device)
    _, peaks = device_of(options)
    batches = make_batches(options.tokens, options.longest, options.updates, options.vocabulary, device)
    print(describe(batches), file=sys.stderr)
    table = table_of(model, tiny=options.tiny, dropout=options.dropout)
    flops = TRAINING_FACTOR * forward_flops(table, options.vocabulary, batches) / sum(b.tokens for b in batches)
    bench = Bench(batches, options.vocabulary, options.passes, device, profiling=options.profile)
    results, profiles, expected = [], [], None
    for mode in options.modes or default_modes(model, device):
        result = Result(model, precision, mode, training_flops_per_piece=flops)
        change, profiled = bench.run(result, table)
        expected = change if mode == "eager" else expected
        if change is not None and expected is not None:
            result.agreement = float(torch.nn.functional.cosine_similarity(change, expected, dim=0))
        if precision in peaks:
            result.mfu = flops * result.target_pieces_per_s / (peaks[precision] * 1e12)
        print(f"{model} {precision} {mode}: {result.error or round(result.target_pieces_per_s)}", file=sys.stderr)
        results.append(result)
        profiles += [profiled] if profiled else []
    return results, profiles


def device_of(options: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """Return the device's name and its peaks."""
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return name, peaks_of(name, options.peak_tflops)


def arguments() -> argparse.ArgumentParser:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=("bfloat16", "tf32", "float32"))
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all that suit the device and the model")
    parser.add_argument("--tokens", type=int, default=16384, help="padded pieces of the longer side of an update")
    parser.add_argument("--longest", type=int, default=BUCKETS[-1], help="pieces; longer pairs are left out")
    parser.add_argument("--updates", type=int, default=40, help="of a pass")
    parser.add_argument("--passes", type=int, default=3, help="that are timed")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dropout", type=float, help="in place of the models' own")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not in the table, or of one precision")
    parser.add_argument("--no-profile", dest="profile", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="models of a few units")
    parser.set_defaults(precisions=["bfloat16", "tf32"] if on_gpu else ["float32"])
    return parser


def peaks_of(name: str, given: float | None) -> dict[str, float]:
    """Return TFLOP/s by precision; nothing for a device that is not known, where none is given."""
    if given is not None:
        return dict.fromkeys(("bfloat16", "tf32", "float32"), given)
    return next((peaks for part, peaks in PEAKS if part in name), {})


def default_modes(model: str, device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda":
        return ("eager", "static")
    return tuple(mode for mode in MODES if mode != "compiled" or model not in STEPWISE)


def table_of(model: str, *, tiny: bool, dropout: float | None) -> ModelTable:
    keys = dict(MODELS[model])
    if tiny:
        keys |= TINY | TINY_SIZES[keys.get("architecture", "recurrent")]
    if dropout is not None:
        keys["dropout"] = dropout
    return model_table(keys)


# Measuring


@dataclass
class Bench:
    """What all measurements share."""

    batches: Sequence[Batch]
    vocabulary: int
    passes: int
    device: torch.device
    profiling: bool

    def run(self, result: Result, table: ModelTable) -> tuple[Tensor | None, dict[str, Any]]:
        """Fill the result; return the weights' change over the first update of each bucket, and the profiler's figures.

        An error is written into the result, and the next mode has its turn.
        """
        try:
            return self._run(result, table)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            traceback.print_exc()
            result.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:160]
            return None, {}

    def _run(self, result: Result, table: ModelTable) -> tuple[Tensor, dict[str, Any]]:
        _emptied(self.device)
        start = time.perf_counter()
        run = new_run(table, self.vocabulary, result.precision, result.mode, self.device)
        before = weights(run.model)
        update = update_of(run, result.mode, self.batches)
        numbers = itertools.count()
        firsts = list({batch.bucket: batch for batch in self.batches}.values())
        self._pass(update, firsts, numbers)
        result.setup_seconds = time.perf_counter() - start
        change = weights(run.model) - before
        passes = [self._pass(update, self.batches, numbers) for _ in range(self.passes)]
        pieces = sum(batch.tokens for batch in self.batches)
        rates = [pieces / seconds for seconds, _ in passes]
        result.target_pieces_per_s, result.least, result.most = statistics.median(rates), min(rates), max(rates)
        result.milliseconds_per_update = 1e3 * pieces / result.target_pieces_per_s / len(self.batches)
        result.last_loss = passes[-1][1]
        if self.device.type == "cuda":
            result.memory_gb = torch.cuda.max_memory_allocated(self.device) / 1e9
        if result.mode == "compiled":
            result.graph_breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        wanted = self.profiling and result.mode in ("eager", "graphs")
        return change, self._profile(run.model, result, update, numbers) if wanted else {}

    def _pass(self, update: Update, batches: Sequence[Batch], numbers: Iterator[int]) -> tuple[float, float]:
        """Do an update on each batch; return the seconds of all and the last loss."""
        _finished(self.device)
        start = time.perf_counter()
        for batch in batches:
            loss = update(next(numbers), batch)
        _finished(self.device)
        return time.perf_counter() - start, float(loss)

    def _profile(self, model: Seq2Seq, result: Result, update: Update, numbers: Iterator[int]) -> dict[str, Any]:
        """Return where the time of some updates of one bucket goes."""
        of_bucket = [batch for batch in self.batches if batch.bucket == PROFILED_BUCKET] or self.batches[:1]
        some = [of_bucket[number % len(of_bucket)] for number in range(PROFILED_UPDATES)]
        self._pass(update, some, numbers)
        seconds, _ = self._pass(update, some, numbers)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
        with named_decoder(model), profile(activities=activities) as profiler:
            self._pass(update, some, numbers)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        found = {"model": result.model, "precision": result.precision, "mode": result.mode, "bucket": some[0].bucket}
        return found | shares(events, len(some), 1e3 * seconds / len(some))


def _emptied(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def named_decoder(model: Seq2Seq) -> Iterator[None]:
    """Make the decoder's forward pass an event of its own."""
    spans: list[record_function] = []

    def enter(*_: object) -> None:
        spans.append(record_function("decoder"))
        spans[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: object) -> None:
        spans.pop().__exit__(None, None, None)

    decoder = model.get_submodule("decoder")
    handles = [decoder.register_forward_pre_hook(enter), decoder.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shares(events: Sequence[Mapping[str, Any]], updates: int, milliseconds: float) -> dict[str, Any]:
    """Return figures of one update from a trace of so many, and `milliseconds` of one that was not traced.

    `gpu_busy` is the share of that time in which a kernel ran, `launching` that of the host in calls that start kernels
    (traced: an upper bound), `decoder_*` of the decoder's forward pass alone.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    kernels = [event for event in timed if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    launches = [e for e in timed if e.get("cat") in ("cuda_runtime", "cuda_driver") and "Launch" in e["name"]]
    decoder = [e for e in timed if e.get("cat") == "user_annotation" and e["name"] == "decoder"]
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in decoder]
    started = {
        event["args"]["correlation"] for event in launches if any(begin <= event["ts"] <= end for begin, end in spans)
    }
    of_decoder = [kernel for kernel in kernels if kernel["args"].get("correlation") in started]
    each = 1e-3 / updates
    return {
        "milliseconds": milliseconds,
        "kernels": len(kernels) / updates,
        "launch_calls": len(launches) / updates,
        "gpu_busy": _union(kernels) * each / milliseconds,
        "launching": sum(event["dur"] for event in launches) * each / milliseconds,
        "decoder_host_milliseconds": sum(end - begin for begin, end in spans) * each,
        "decoder_gpu_milliseconds": _union(of_decoder) * each,
        "decoder_kernels": len(of_decoder) / updates,
        "operations": sum(event.get("cat") == "cpu_op" for event in timed) / updates,
    }


def _union(events: Sequence[Mapping[str, Any]]) -> float:
    """Return the microseconds in which at least one of the events ran."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted((event["ts"], event["ts"] + event["dur"]) for event in events):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


# The results


def print_tables(results: Sequence[Result], profiles: Sequence[Mapping[str, Any]]) -> None:
    print("| model | precision | mode | target pieces/s | ms an update | MFU | GB | setup s | loss | agreement |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in results:
        start = f"| {r.model} | {r.precision} | {r.mode} |"
        if r.error:
            print(f"{start} {r.error} | | | | | | |")
            continue
        mfu = "-" if r.mfu is None else f"{r.mfu:.1%}"
        breaks = f" ({r.graph_breaks} graph breaks)" if r.graph_breaks else ""
        print(
            f"{start} {r.target_pieces_per_s:,.0f} ({r.least:,.0f}-{r.most:,.0f}) | {r.milliseconds_per_update:.1f} "
            f"| {mfu} | {r.memory_gb:.1f} | {r.setup_seconds:.0f}{breaks} | {r.last_loss:.4f} "
            f"| {r.agreement:.4f} |"
        )
    if not profiles:
        return
    print("\nOne update of one bucket: times in ms, shares of the time that it takes without the profiler.\n")
    columns = [key for key in profiles[0] if key not in ("model", "precision", "mode")]
    print(f"| model | precision | mode | {' | '.join(column.replace('_', ' ') for column in columns)} |")
    print("|" + "---|" * (len(columns) + 3))
    for found in profiles:
        print(f"| {found['model']} | {found['precision']} | {found['mode']} | ", end="")
        print(" | ".join(f"{found[column]:,.2f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
