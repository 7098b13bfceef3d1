"""Stage 6: checkpoint + text -> translations, under Ray Data. No line is lost.

    translate(Path("runs/my/model"), Path("in.txt"), Path("out.txt"), config_overrides={}, ray=RayConfig())

N lines in, N lines out, in the order of the input; an empty line stays empty; a line that is too long is split at
sentence ends and joined; a line that cannot be decoded carries its error. The input is cut into shards; an actor
translates a shard and renames it into place when it is whole, so a restart does only what is missing.

    translate-<key>/
    ├── hypotheses/<test set>.txt    one line a row of clean/test of that corpus
    └── attention.json               where the model looks in some sentences
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from nmt.checkpoint import load_config
from nmt.config import RayConfig, TranslateConfig
from nmt.evaluate import EvaluationSet, hypotheses_path, read_tests
from nmt.published import load_published
from nmt.ray_session import check_gpus, ray_session
from nmt.translator import Translator, TranslatorConfig, as_record
from pipelines.config import LanguagesConfig, NormalizeConfig
from pipelines.corpus import opened
from pipelines.errors import InputError
from pipelines.stage import (
    StageResult,
    StageRun,
    digest_of,
    file_sha256,
    replacing,
    run_stage,
    write_atomically,
)

STAGE_VERSION = 1
ATTENTION_FILE = "attention.json"
_NUM_ATTENTION_MAPS = 4
_MAX_MAP_WORDS = 14  # a longer sentence's map cannot be read

INPUT_SCHEMA = pa.schema([("row", pa.int64()), ("source", pa.string()), ("error", pa.string())])
OUTPUT_SCHEMA = pa.schema(
    [("row", pa.int64()), ("source", pa.string()), ("translation", pa.string()), ("error", pa.string())]
)

log = logging.getLogger(__name__)


def translate(
    model: Path,
    source: Path,
    output: Path,
    *,
    config_overrides: Mapping[str, Any],
    ray: RayConfig,
    use_ray: bool = True,
) -> dict[str, Any]:
    """Return the figures of a translation of a text file (plain or .gz), done: rows, errors, seconds, rows_per_s.

    `output` ends in .parquet (columns row, source, translation, error) or is text, a line a row; errors of a text
    output are in `<output>.errors.jsonl`. It appears when it is whole; until then the work is in `<output>.work`,
    from which an interrupted run goes on.
    Raises InputError for a model, an input or an override that cannot be used.
    """
    published = load_published(model)
    settings = published.translation.translate.model_dump(mode="json") | dict(config_overrides)
    try:
        config = TranslateConfig.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InputError(faults, where="--set translate", remedy="See `seqloom schema`") from error
    check_input(source)
    check_output(output)
    translator = _translator(
        published.checkpoint,
        published.tokenizer,
        published.translation.languages,
        published.translation.normalize,
        config,
        ray,
    )
    started = time.monotonic()
    key = digest_of([published.description.version, config.model_dump(mode="json"), file_sha256(source)])
    work = output.with_name(output.name + ".work")
    if work.exists() and _work_key(work) != key:
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    inputs = _cut(decoded_lines(source), work, config.rows_per_shard)
    write_atomically(work / "key", key)
    _run(inputs, translator, ray, use_ray=use_ray)
    rows, errors = _joined(inputs, output)
    shutil.rmtree(work)
    seconds = time.monotonic() - started
    return {
        "rows": rows,
        "errors": errors,
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / max(seconds, 1e-9), 2),
        "model": published.description.version,
        "output": str(output),
    }


def translate_tests(
    config: TranslateConfig,
    trained: StageRun,
    tokenizer: StageRun,
    cleaned: StageRun,
    ray: RayConfig,
    root: Path,
    *,
    use_ray: bool = True,
) -> StageRun:
    """Return the finished stage: the translations of each test set, and attention maps of some sentences.

    Raises InputError when the checkpoint is of another tokeniser.
    """
    inputs = {
        "trained": trained.manifest.digest(),
        "tokenizer": tokenizer.manifest.digest(),
        "cleaned": cleaned.manifest.digest(),
    }
    languages = LanguagesConfig.model_validate(cleaned.manifest.config["languages"])
    normalization = NormalizeConfig.model_validate(cleaned.manifest.config["normalize"])

    def body(folder: Path) -> StageResult:
        translator = _translator(trained.folder / "best", tokenizer.folder, languages, normalization, config, ray)
        Translator(translator)  # raises what is the user's to mend, before a worker starts
        tests = read_tests(cleaned)
        (folder / "hypotheses").mkdir(exist_ok=True)
        shards: dict[str, list[Path]] = {}
        for test in tests:
            work = folder / "work" / test.name
            work.mkdir(parents=True, exist_ok=True)
            shards[test.name] = _cut(((text, None) for text in test.sources), work, config.rows_per_shard)
        started = time.monotonic()
        _run([path for paths in shards.values() for path in paths], translator, ray, use_ray=use_ray)
        seconds = time.monotonic() - started
        counters: dict[str, Any] = {}
        for test in tests:
            rows, _ = _joined(shards[test.name], hypotheses_path(folder, test.name))
            if rows != len(test.sources):
                raise RuntimeError(f"{test.name}: {len(test.sources)} rows in, {rows} out")
            share = seconds * rows / sum(len(each.sources) for each in tests)
            counters[test.name] = {
                "rows": rows,
                "seconds": round(share, 3),
                "rows_per_s": round(rows / max(share, 1e-9), 2),
            }
        _write_attention(folder, Translator(translator), tests)
        shutil.rmtree(folder / "work")
        outputs = [f"hypotheses/{test.name}.txt" for test in tests]
        return StageResult([*outputs, ATTENTION_FILE], {"tests": counters})

    settings = {"translate": config.model_dump(mode="json")}
    return run_stage("translate", STAGE_VERSION, settings, inputs, root, body, keeps_partial_output=True)


def _translator(
    checkpoint: Path,
    tokenizer: Path,
    languages: LanguagesConfig,
    normalization: NormalizeConfig,
    config: TranslateConfig,
    ray: RayConfig,
) -> TranslatorConfig:
    if not load_config(checkpoint).model.has_source:
        raise InputError(
            "a language model translates nothing",
            where=str(checkpoint),
            remedy="Score texts with it, by `seqloom score`, or give a translation model",
        )
    return TranslatorConfig(
        checkpoint=str(checkpoint.resolve()),
        tokenizer=str(tokenizer.resolve()),
        source_language=languages.source,
        normalize=normalization,
        translate=config,
        device="cuda" if ray.use_gpu else "cpu",
        threads=ray.threads_per_worker,
    )


# Text to shards of work


def check_input(source: Path) -> None:
    """Raise InputError where there is no text to read."""
    if not source.is_file():
        raise InputError("no such file", where=str(source), remedy="Give a text file, plain or .gz")
    if source.stat().st_size == 0:
        raise InputError("the file is empty", where=str(source), remedy="Give a text file with a line a sentence")


def check_output(output: Path) -> None:
    """Raise InputError where no file can be written."""
    if output.is_dir():
        raise InputError("is a folder", where=str(output), remedy="Give the path of a file to write")
    if not output.parent.is_dir():
        raise InputError("no such folder", where=str(output.parent), remedy="Make it first")


def _work_key(work: Path) -> str | None:
    path = work / "key"
    return path.read_text(encoding="utf-8") if path.exists() else None


def decoded_lines(source: Path) -> Iterator[tuple[str, str | None]]:
    """Yield each line, without its end, and None or why it cannot be decoded. Only a line feed ends a line."""
    with opened(source) as file:
        for number, line in enumerate(file):
            raw = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 0:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                decoded, fault = raw.decode("utf-8"), None
            except UnicodeDecodeError as error:
                decoded, fault = raw.decode("utf-8", "backslashreplace"), f"invalid UTF-8 at byte {error.start}"
            yield decoded, fault


def _cut(lines: Iterable[tuple[str, str | None]], work: Path, rows_per_shard: int) -> list[Path]:
    """Return the shards of work, `in-<n>.parquet`, in order; in constant memory."""
    paths: list[Path] = []
    held: list[tuple[int, str, str | None]] = []

    def flush() -> None:
        path = work / f"in-{len(paths):06d}.parquet"
        columns = list(zip(*held))
        table = pa.table([pa.array(column, field.type) for column, field in zip(columns, INPUT_SCHEMA)], INPUT_SCHEMA)
        _write_parquet(table, path)
        paths.append(path)
        held.clear()

    for row, (text, fault) in enumerate(lines):
        held.append((row, text, fault))
        if len(held) == rows_per_shard:
            flush()
    if held:
        flush()
    return paths


def _write_parquet(table: pa.Table, path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


# Shards of work to translated shards


def _translated_path(shard: Path) -> Path:
    return shard.with_name(shard.name.replace("in-", "out-", 1))


def translate_shard(translator: Translator, shard: Path) -> int:
    """Return the rows of a shard of work, translated: the output has them in the same order, and appears whole."""
    table = pq.read_table(shard, schema=INPUT_SCHEMA)
    errors = table["error"].to_pylist()
    texts = ["" if error else text for text, error in zip(table["source"].to_pylist(), errors)]
    translations = translator.translate(texts)
    if len(translations) != table.num_rows:
        raise RuntimeError(f"{shard}: {table.num_rows} rows in, {len(translations)} out")
    columns = [table["row"], table["source"], pa.array(translations, pa.string()), table["error"]]
    _write_parquet(pa.table(columns, OUTPUT_SCHEMA), _translated_path(shard))
    return len(translations)


class _ShardActor:
    """Ray Data's callable: one translator for the life of an actor."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.translator = Translator(TranslatorConfig.model_validate(config))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [translate_shard(self.translator, Path(str(path))) for path in batch["path"]]
        return {"path": batch["path"], "rows": np.asarray(rows)}


def _run(shards: list[Path], translator: TranslatorConfig, config: RayConfig, *, use_ray: bool) -> None:
    todo = [shard for shard in shards if not _translated_path(shard).exists()]
    log.info("translating %d shards, %d are done", len(todo), len(shards) - len(todo))
    if not todo:
        return
    check_gpus(config, 1)
    if use_ray:
        _run_with_ray(todo, translator, config)
        return
    local = Translator(translator)
    for shard in todo:
        translate_shard(local, shard)


def _run_with_ray(todo: list[Path], translator: TranslatorConfig, config: RayConfig) -> None:
    import ray.data

    actors = min(config.translate_actors, len(todo))
    with ray_session(config, num_cpus=actors * config.threads_per_worker):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that we turned its progress bars off
        dataset = ray.data.from_items([{"path": str(path)} for path in todo], override_num_blocks=len(todo))
        started = time.monotonic()
        results = dataset.map_batches(
            _ShardActor,
            fn_constructor_args=(translator.model_dump(mode="json"),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=config.threads_per_worker,
            num_gpus=1 if config.use_gpu else 0,
        )
        rows = 0
        for done, result in enumerate(results.iter_rows(), start=1):
            rows += int(result["rows"])
            rate = rows / (time.monotonic() - started)
            log.info("translated %d of %d shards, about %.0f rows/s", done, len(todo), rate)


# Translated shards to one output


def _joined(shards: list[Path], output: Path) -> tuple[int, int]:
    """Return rows and errors of the output, made of the translated shards in order, whole or not at all."""
    faults: list[dict[str, Any]] = []
    rows = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal rows
        for shard in shards:
            table = pq.read_table(_translated_path(shard), schema=OUTPUT_SCHEMA)
            rows += _same_rows(shard, table)
            faults.extend(_faults(table))
            yield table

    with replacing(output) as temporary:
        if output.suffix == ".parquet":
            with pq.ParquetWriter(temporary, OUTPUT_SCHEMA, compression="zstd") as writer:
                for table in tables():
                    writer.write_table(table)
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                for table in tables():
                    file.writelines(f"{translation}\n" for translation in table["translation"].to_pylist())
            report = output.with_name(output.name + ".errors.jsonl")
            report.unlink(missing_ok=True)
            if faults:
                write_atomically(report, "".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults))
                log.warning("%d lines have no translation: see %s", len(faults), report)
    return rows, len(faults)


def _same_rows(shard: Path, translated: pa.Table) -> int:
    expected = pq.read_metadata(shard).num_rows
    if translated.num_rows != expected:
        raise RuntimeError(f"{shard}: {expected} rows in, {translated.num_rows} out")
    return int(expected)


def _faults(table: pa.Table) -> list[dict[str, Any]]:
    return [
        {"line": row + 1, "error": error, "source": source}
        for row, source, error in zip(table["row"].to_pylist(), table["source"].to_pylist(), table["error"].to_pylist())
        if error is not None
    ]


def _write_attention(folder: Path, translator: Translator, tests: list[EvaluationSet]) -> None:
    test = tests[0]
    hypotheses = hypotheses_path(folder, test.name).read_text(encoding="utf-8").split("\n")[:-1]
    short = [row for row, text in enumerate(test.sources) if 3 <= len(text.split()) <= _MAX_MAP_WORDS]
    chosen = [short[i] for i in np.linspace(0, len(short) - 1, num=min(_NUM_ATTENTION_MAPS, len(short))).astype(int)]
    maps = [
        {"test": test.name, "row": row, "source": test.sources[row], "hypothesis": hypotheses[row]}
        | as_record(attention)
        for row in chosen
        if hypotheses[row] and (attention := translator.attention(test.sources[row], hypotheses[row])) is not None
    ]
    write_atomically(folder / ATTENTION_FILE, json.dumps(maps, ensure_ascii=False, indent=1) + "\n")
