"""How the Beam stages run: pipeline options from the profile, and a quiet log."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipelines.config import BeamConfig
from pipelines.errors import InputError
from pipelines.processes import available_processes, each, processes_closed, start_server


@contextmanager
def _root_logger_untouched() -> Iterator[None]:
    # Beam calls `logging.basicConfig` wherever it reads options, which would give a program's root logger a handler.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


with _root_logger_untouched():
    # Importing Beam warns of each cloud package that is not there.
    logging.disable(logging.WARNING)
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

    logging.disable(logging.NOTSET)

__all__ = ["Each", "Spread", "beam", "local_processes", "pipeline_options", "run_pipeline"]

IN_PROCESS_RUNNER = "FnApiRunner"
# A runner that comes with Beam, but that it knows by its whole name only; its module adds its options.
_DASK = "apache_beam.runners.dask.dask_runner"


def local_processes(config: BeamConfig, pieces: int) -> int:
    """Return in how many processes of this machine the steps run: no more than there are pieces of work.

    1 where the runner is not the in-process one, or runs its own processes. Where it is more, they begin to start.
    """
    if config.runner != IN_PROCESS_RUNNER or "direct_running_mode" in config.options:
        return 1
    processes = min(config.processes or available_processes(), max(pieces, 1))
    if processes > 1:
        start_server()
    return processes


class Each(beam.PTransform):  # type: ignore[misc]
    """Elements -> what a step returns for each, spread over the workers; over processes of this machine where > 1.

    `step` is a function of a module, or a `partial` of one.
    """

    def __init__(self, step: Callable[[Any], Any], processes: int) -> None:
        super().__init__()
        self._step, self._processes = step, processes

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Return the results, in no order."""
        if self._processes == 1:
            return elements | "Spread" >> Spread() | "Step" >> beam.Map(self._step)
        return (
            elements
            | "Under one key" >> beam.Map(lambda element: (0, element))
            | "Together" >> beam.GroupByKey()
            | "Steps" >> beam.FlatMapTuple(partial(_in_processes, self._step, self._processes))
        )


class Spread(beam.PTransform):  # type: ignore[misc]
    """The same elements, spread over the workers.

    As Beam's Reshuffle, which the Dask runner leaves out: there, all that follows a GroupByKey by one key would be done
    by one worker. Elements are descriptions of work, so their text is short and tells them apart.
    """

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Return the elements, grouped by a number that is as good as drawn, and taken out of their groups."""
        return (
            elements
            | "Number" >> beam.Map(_numbered)
            | "Group" >> beam.GroupByKey()
            | "Elements" >> beam.FlatMapTuple(lambda _, group: group)
        )


def _numbered(element: object) -> tuple[int, object]:
    return zlib.crc32(repr(element).encode()), element


def _in_processes(step: Callable[[Any], Any], processes: int, _: int, elements: Iterable[Any]) -> Iterator[Any]:
    yield from each(step, list(elements), processes)


@_root_logger_untouched()
def pipeline_options(config: BeamConfig) -> PipelineOptions:
    """Return Beam's options for a profile. The command line of the process plays no part in them.

    Raises InputError for an option that Beam does not have, a value that it refuses, a runner whose package is not
    installed, and for the mode that is known to lose rows.
    """
    runner = _full_name(config.runner)
    # By their flags: some options have another name inside of Beam (dask_client_address is `address`).
    flags: set[str] = set()
    PipelineOptions(flags=[]).get_all_options(add_extra_args_fn=lambda parser: flags.update(_flags(parser)))
    for option in config.options:
        if f"--{option}" not in flags or option == "runner":
            raise InputError(
                f"Beam has no option {option!r}" if option != "runner" else "the runner has a key of its own",
                where=f"beam.options.{option}",
                remedy="Use the names of Beam's pipeline options without dashes; the runner is `beam.runner`",
            )
    if config.options.get("direct_running_mode") == "multi_threading":
        raise InputError(
            "Beam loses rows in the mode 'multi_threading'",
            where="beam.options.direct_running_mode",
            remedy="Use 'in_memory' or 'multi_processing'",
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions.from_dictionary({**config.options, "runner": runner})
            options.get_all_options()  # which is when values are looked at
    except SystemExit as error:  # how argparse refuses one
        what = said.getvalue().strip().rpartition("error: ")[2]
        raise InputError(
            f"Beam refuses a value: {what}", where="beam.options", remedy="Put versions in quotes: 1.20 is a number"
        ) from error
    return options


def _full_name(runner: str) -> str:
    """Return the name by which Beam finds a runner, whose options it knows from then on."""
    if runner != "DaskRunner":
        return runner
    try:
        importlib.import_module("dask.distributed")
        importlib.import_module("dask.bag")
        importlib.import_module(_DASK)
    except ImportError as error:
        raise InputError(
            f"the package of {runner} is not installed", where="beam.runner", remedy="pip install 'seqloom[dask]'"
        ) from error
    return f"{_DASK}.{runner}"


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings


@_root_logger_untouched()
def run_pipeline(build: Callable[[beam.Pipeline], None], config: BeamConfig) -> None:
    """Build a pipeline and run it to its end.

    Raises InputError as `pipeline_options` does, and for a runner that Beam does not have, before anything runs.
    """
    options = pipeline_options(config)
    # Beam reports each start and each end of a worker; what fails comes as an exception.
    for library in ("apache_beam", "distributed"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        pipeline = beam.Pipeline(options=options)
    except (AttributeError, ImportError, ValueError) as error:
        raise InputError(
            f"Beam cannot start the runner {config.runner!r}: {error}",
            where="beam.runner",
            remedy="Use one of Beam's runners, as FnApiRunner or FlinkRunner, with the packages that it needs",
        ) from error
    try:
        with processes_closed(), pipeline:
            build(pipeline)
            if config.runner == "DaskRunner":
                _join_ends(pipeline)
    finally:
        # Dask's client stays connected, and keeps asking for a scheduler that has gone, until it is closed.
        client = getattr(pipeline.result, "client", None)
        if client is not None:
            client.close()


def _join_ends(pipeline: beam.Pipeline) -> None:
    """Lead all ends of a graph into one: the Dask runner works out what its last step needs, and nothing else."""
    ends: dict[beam.PCollection, None] = {}

    class Visitor(PipelineVisitor):  # type: ignore[misc]
        def visit_transform(self, transform_node: AppliedPTransform) -> None:
            for taken in (*transform_node.inputs, *(side.pvalue for side in transform_node.side_inputs)):
                ends.pop(taken, None)
            ends.update(dict.fromkeys(transform_node.outputs.values()))

    pipeline.visit(Visitor())
    _ = list(ends) | "All ends" >> beam.Flatten()
