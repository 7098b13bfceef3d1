from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.config import PROFILES, load_profile
from pipelines.runner import pipeline_options

FILES = sorted(PROFILES.glob("*.yaml"))
# Runners whose options Beam knows without a package of their own.
BUILT_IN = [path for path in FILES if load_profile(str(path)).beam.runner != "DaskRunner"]


def test_every_runner_that_the_documents_describe_has_a_profile() -> None:
    assert {"dask", "dataflow", "flink", "local", "spark", "two-processes"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_beam_knows_every_option_of_a_profile_and_takes_its_value(path: Path) -> None:
    profile = load_profile(path.stem)
    options = pipeline_options(profile.beam).get_all_options()
    assert options["runner"] == profile.beam.runner
    assert {key: options[key] for key in profile.beam.options} == profile.beam.options


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_profile_that_was_not_run_says_so(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ("NOT RUN BY US" in text) == (path.stem in {"dataflow", "flink", "spark"})
    assert yaml.safe_load(text)["name"] == path.stem
