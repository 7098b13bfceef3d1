from __future__ import annotations

import pickle
from pathlib import Path

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError
from pipelines.stage import (
    StageResult,
    WouldRun,
    digest_of,
    file_sha256,
    planning,
    read_manifest,
    run_stage,
    stage_folder,
    stage_key,
    write_atomically,
)


def write_text(folder: Path) -> StageResult:
    (folder / "text.txt").write_text("ein Haus\n", encoding="utf-8")
    return StageResult(["text.txt"], {"lines": 1})


def must_not_run(folder: Path) -> StageResult:
    raise AssertionError(f"ran in {folder}")


def test_manifest_says_what_was_made(tmp_path: Path) -> None:
    run = run_stage("copy", 3, {"size": 2}, {"raw": "abc"}, tmp_path, write_text)
    manifest = run.manifest
    assert not run.reused
    assert run.folder == tmp_path / f"copy-{manifest.key}"
    assert (manifest.stage, manifest.version, manifest.config) == ("copy", 3, {"size": 2})
    assert manifest.inputs == {"raw": "abc"}
    assert manifest.counters == {"lines": 1}
    (output,) = manifest.outputs
    assert (output.path, output.rows, output.bytes) == ("text.txt", None, 9)
    assert output.sha256 == file_sha256(run.folder / "text.txt")
    assert read_manifest(run.folder) == manifest


def test_parquet_outputs_have_their_rows(tmp_path: Path) -> None:
    def body(folder: Path) -> StageResult:
        pq.write_table(pa.table({"row_id": [1, 2, 3]}), folder / "b.parquet")
        return StageResult(["b.parquet"], {})

    assert run_stage("rows", 1, {}, {}, tmp_path, body).manifest.outputs[0].rows == 3


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first = run_stage("copy", 1, {}, {}, tmp_path, write_text)
    again = run_stage("copy", 1, {}, {}, tmp_path, must_not_run)
    assert again.reused
    assert again.manifest == first.manifest


@pytest.mark.parametrize(
    ("name", "version", "config", "inputs"),
    [
        ("other", 1, {"a": 1}, {"raw": "x"}),
        ("copy", 2, {"a": 1}, {"raw": "x"}),
        ("copy", 1, {"a": 2}, {"raw": "x"}),
        ("copy", 1, {"a": 1}, {"raw": "y"}),
    ],
)
def test_whatever_decides_the_output_changes_the_key(
    name: str, version: int, config: dict[str, int], inputs: dict[str, str]
) -> None:
    assert stage_key(name, version, config, inputs) != stage_key("copy", 1, {"a": 1}, {"raw": "x"})


def test_the_order_of_keys_does_not_change_the_key() -> None:
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert stage_key("copy", 1, one, {}) == stage_key("copy", 1, other, {})
    assert len(stage_key("copy", 1, one, {})) == 12


def test_a_failed_stage_leaves_no_manifest_and_runs_again(tmp_path: Path) -> None:
    def fails(folder: Path) -> StageResult:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run_stage("copy", 1, {}, {}, tmp_path, fails)
    folder = stage_folder(tmp_path, "copy", stage_key("copy", 1, {}, {}))
    assert read_manifest(folder) is None
    run = run_stage("copy", 1, {}, {}, tmp_path, write_text)
    assert not run.reused
    assert not (folder / "half.txt").exists()


def test_a_stage_that_continues_finds_its_left_overs(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> StageResult:
        (folder / "checkpoint").write_text("update 7")
        raise KeyboardInterrupt

    def continues(folder: Path) -> StageResult:
        return StageResult([], {"from": (folder / "checkpoint").read_text()})

    with pytest.raises(KeyboardInterrupt):
        run_stage("train", 1, {}, {}, tmp_path, interrupted)
    run = run_stage("train", 1, {}, {}, tmp_path, continues, keeps_partial_output=True)
    assert run.manifest.counters == {"from": "update 7"}


def test_a_second_process_in_the_folder_is_an_input_error(tmp_path: Path) -> None:
    folder = stage_folder(tmp_path, "copy", stage_key("copy", 1, {}, {}))
    with (
        filelock.FileLock(tmp_path / f".{folder.name}.lock"),
        pytest.raises(InputError, match="another process is running the stage 'copy'"),
    ):
        run_stage("copy", 1, {}, {}, tmp_path, must_not_run)


def test_an_output_that_was_not_written_fails_the_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        run_stage("copy", 1, {}, {}, tmp_path, lambda _: StageResult(["missing.txt"], {}))
    assert not list(tmp_path.glob("copy-*/manifest.json"))


@pytest.mark.parametrize("content", ["", "{}", '{"stage": 1}', "[]"])
def test_a_broken_manifest_is_an_input_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: not a manifest of format 1"):
        read_manifest(tmp_path)


def test_planning_reuses_what_is_done_and_runs_nothing(tmp_path: Path) -> None:
    run_stage("copy", 1, {}, {}, tmp_path, write_text)
    with planning():
        assert run_stage("copy", 1, {}, {}, tmp_path, must_not_run).reused
        with pytest.raises(WouldRun) as caught:
            run_stage("copy", 2, {}, {}, tmp_path, must_not_run)
    assert caught.value.folder == stage_folder(tmp_path, "copy", stage_key("copy", 2, {}, {}))
    assert not caught.value.folder.exists()


def test_the_digest_of_outputs_is_of_paths_and_contents_alone(tmp_path: Path) -> None:
    one = run_stage("copy", 1, {"a": 1}, {}, tmp_path, write_text).manifest
    other = run_stage("copy", 1, {"a": 2}, {}, tmp_path, write_text).manifest
    assert one.digest() == other.digest()
    moved = other.outputs[0].model_copy(update={"path": "else.txt"})
    assert one.digest() != other.model_copy(update={"outputs": (moved,)}).digest()


def test_what_is_no_json_value_has_no_digest() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        digest_of(float("nan"))
    with pytest.raises(TypeError):
        digest_of(Path("a"))


def test_atomic_writing_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("eins\n", "zwei\n"):
        write_atomically(tmp_path / "a.json", text)
    assert (tmp_path / "a.json").read_bytes() == b"zwei\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_input_error_keeps_its_parts_between_processes() -> None:
    error = pickle.loads(pickle.dumps(InputError("no text", where="a.txt", remedy="Add some")))  # noqa: S301
    assert str(error) == "a.txt: no text. Add some"
    assert (error.what, error.where, error.remedy) == ("no text", "a.txt", "Add some")
