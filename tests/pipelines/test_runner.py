from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flows.config import load_profile
from pipelines.config import BeamConfig
from pipelines.errors import InputError
from pipelines.runner import Spread, beam, pipeline_options, run_pipeline


def write(folder: str, element: object) -> object:
    """Leave a file that names the element and the process, and take a while, so that others have work too."""
    (Path(folder) / f"{element}.{os.getpid()}").touch()
    time.sleep(0.05)
    return element


def refuse(element: object) -> object:
    raise InputError("not a number", where=f"line {element}", remedy="Correct it")


def written(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in folder.iterdir())


@pytest.mark.parametrize(
    ("runner", "options", "says"),
    [
        ("FnApiRunner", {"direct_num_worker": 2}, "beam.options.direct_num_worker: Beam has no option"),
        ("FnApiRunner", {"runner": "FnApiRunner"}, "the runner has a key of its own"),
        ("FnApiRunner", {"direct_running_mode": "multi_threading"}, "Beam loses rows"),
        ("FnApiRunner", {"direct_num_workers": "two"}, "argument --direct_num_workers: invalid int value: 'two'"),
        ("FlinkRunner", {"flink_version": 1.2}, "argument --flink_version: invalid choice: '1.2'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    runner: str, options: dict[str, str | int | float | bool], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as raised:
        pipeline_options(BeamConfig(runner=runner, options=options))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().err == ""


def test_the_profile_of_dask_gives_its_address_and_the_size_of_its_tasks() -> None:
    options = pipeline_options(load_profile("dask").beam).get_all_options(drop_default=True)
    assert options == {
        "runner": "apache_beam.runners.dask.dask_runner.DaskRunner",
        "address": "tcp://dask-scheduler:8786",
        "partition_size": 1,
    }


def test_a_runner_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(InputError, match="the package of DaskRunner is not installed"):
        pipeline_options(BeamConfig(runner="DaskRunner"))


def test_spreading_changes_no_element(tmp_path: Path) -> None:
    elements = [1, 2, 2, "b", ("c", 1), {"d": 1}]

    def build(pipeline: beam.Pipeline) -> None:
        spread = pipeline | beam.Create(elements) | Spread()
        _ = spread | beam.Map(lambda element: (0, repr(element))) | beam.GroupByKey() | beam.MapTuple(check)

    def check(_key: int, found: list[str]) -> None:
        (tmp_path / "found").write_text("\n".join(sorted(found)), encoding="utf-8")

    run_pipeline(build, BeamConfig())
    assert (tmp_path / "found").read_text(encoding="utf-8").splitlines() == sorted(map(repr, elements))


@pytest.fixture(scope="module")
def dask() -> Iterator[BeamConfig]:
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        options: dict[str, str | int | float | bool] = {"dask_client_address": cluster.scheduler_address}
        yield BeamConfig(runner="DaskRunner", options={**options, "dask_partition_size": 1})


@pytest.mark.cluster
def test_dask_works_out_every_end_of_a_graph(dask: BeamConfig, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        for name in ("a", "b"):
            numbers = pipeline | f"Create {name}" >> beam.Create(range(3))
            for end in ("x", "y"):
                named = numbers | f"Name {name}{end}" >> beam.Map(lambda number, name=name + end: f"{name}{number}")
                _ = named | f"Write {name}{end}" >> beam.Map(partial(write, str(tmp_path)))

    run_pipeline(build, dask)
    assert written(tmp_path) == [f"{name}{end}{number}" for name in "ab" for end in "xy" for number in range(3)]


@pytest.mark.cluster
def test_dask_spreads_what_comes_after_a_barrier(dask: BeamConfig, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        _ = (
            pipeline
            | beam.Create(range(40), reshuffle=False)
            | beam.Map(lambda number: (0, number))
            | beam.GroupByKey()
            | beam.FlatMapTuple(lambda _, numbers: numbers)
            | Spread()
            | "Write" >> beam.Map(partial(write, str(tmp_path)))
        )

    run_pipeline(build, dask)
    assert sorted(written(tmp_path), key=int) == [str(number) for number in range(40)]
    assert len({path.suffix for path in tmp_path.iterdir()}) == 2  # processes


@pytest.mark.cluster
def test_an_input_error_of_a_dask_worker_arrives_as_one(dask: BeamConfig) -> None:
    with pytest.raises(InputError) as raised:
        run_pipeline(lambda pipeline: pipeline | beam.Create([7]) | beam.Map(refuse), dask)
    assert (raised.value.what, raised.value.where) == ("not a number", "line 7")
