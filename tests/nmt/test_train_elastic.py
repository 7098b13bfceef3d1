"""Nodes that are lost, gained and drained while training runs: the updates stay the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nmt.training.workers import read_workers
from pipelines.stage import StageRun
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import CONFIG, Driver, assert_bit_for_bit, assert_same_updates, run_train

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LONG = CONFIG.model_copy(update={"max_epochs": 40, "patience": 40, "validate_epochs": 10, "checkpoint_updates": 2})
# Beyond the update of a file an update takes seconds, so that there is time for what the test does.
PACED = """
import nmt.carrier
def paced(job_json):
    import time
    from pathlib import Path
    import nmt.carrier, nmt.training.loop
    step, limit = nmt.training.loop.train_step, Path(job_json["folder"]).parent / "limit"
    def one(*arguments, **options):
        if options["update"] >= int(limit.read_text()):
            time.sleep(3)
        return step(*arguments, **options)
    nmt.training.loop.train_step = one
    nmt.carrier._worker(job_json)
nmt.carrier._worker = paced
nmt.carrier.RESIZE_EVERY_S = 3
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of this machine: a head without CPUs for the driver, and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    # Else whoever starts a Ray on this machine would be connected to this one.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *arguments: None)
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    found.nodes = [add_node(found) for _ in range(2)]
    yield found
    found.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


@pytest.fixture(scope="module")
def undisturbed(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("undisturbed"), config=LONG)


@pytest.fixture(scope="module")
def undisturbed_pair(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("pair"), workers=2, config=LONG)


def start(toy: ToyStages, root: Path, cluster: Any, *, min_workers: int | None) -> Driver:
    (root / "limit").write_text("6")
    ray = toy.ray.model_copy(update={"address": cluster.address, "num_workers": 2, "min_workers": min_workers})
    return Driver(toy, root, workers=2, config=LONG, ray=ray, before=PACED)


def until_workers(driver: Driver, *numbers: int) -> None:
    """Wait until training has been started with these numbers of workers, one after the other."""
    driver.until(lambda: any(driver.root.glob("train-*/workers.jsonl")) and sizes(driver) == list(numbers))


def sizes(driver: Driver) -> list[int]:
    return [len(start["workers"]) for start in read_workers(driver.folder)]


def finished(driver: Driver) -> StageRun:
    (driver.root / "limit").write_text("1000000")
    return driver.finished()


def test_with_a_node_lost_training_goes_on_with_fewer_workers_and_grows_again(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path, cluster: Any
) -> None:
    driver = start(toy, tmp_path, cluster, min_workers=1)
    driver.until_checkpoint()
    cluster.remove_node(cluster.nodes[1], allow_graceful=False)
    until_workers(driver, 2, 1)
    add_node(cluster)
    until_workers(driver, 2, 1, 2)
    found = finished(driver)
    assert_same_updates(found, undisturbed)
    assert found.manifest.counters["num_workers"] == 2
    shrunk, grown = (start["update"] for start in read_workers(driver.folder)[1:])
    assert 0 < shrunk <= grown
    # Lost are the updates behind the last checkpoint of the node's loss; growing loses none.
    assert found.manifest.counters["ledger"]["updates_again"] <= LONG.checkpoint_updates


def test_a_lost_node_that_is_replaced_changes_no_bit(
    toy: ToyStages, undisturbed_pair: StageRun, tmp_path: Path, cluster: Any
) -> None:
    driver = start(toy, tmp_path, cluster, min_workers=None)
    driver.until_checkpoint()
    cluster.remove_node(cluster.nodes[1], allow_graceful=False)
    add_node(cluster)
    until_workers(driver, 2, 2)
    assert_bit_for_bit(finished(driver), undisturbed_pair)


def test_before_a_node_is_drained_all_workers_save_and_no_update_is_done_twice(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path, cluster: Any
) -> None:
    driver = start(toy, tmp_path, cluster, min_workers=1)
    driver.until_checkpoint()
    script = Path(sys.executable).with_name("ray")
    subprocess.run(
        [
            str(script), "drain-node", "--address", cluster.address, "--node-id", cluster.nodes[1].node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test",
            "--deadline-remaining-seconds", "600",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    until_workers(driver, 2, 1)
    found = finished(driver)
    assert_same_updates(found, undisturbed)
    assert found.manifest.counters["ledger"]["updates_again"] == 0
