"""How the Beam stages run: pipeline options from the profile, and a quiet log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.config import BeamConfig
from pipelines.errors import InputError


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

    logging.disable(logging.NOTSET)

__all__ = ["beam", "pipeline_options", "run_pipeline"]


@_root_logger_untouched()
def pipeline_options(config: BeamConfig) -> PipelineOptions:
    """Return Beam's options for a profile. The command line of the process plays no part in them.

    Raises InputError for an option that Beam does not have, and for the mode that is known to lose rows.
    """
    known = PipelineOptions(flags=[]).get_all_options()
    for option in config.options:
        if option not in known or option == "runner":
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
    return PipelineOptions.from_dictionary({**config.options, "runner": config.runner})


@_root_logger_untouched()
def run_pipeline(build: Callable[[beam.Pipeline], None], config: BeamConfig) -> None:
    """Build a pipeline and run it to its end.

    Raises InputError as `pipeline_options` does, and for a runner that Beam does not have, before anything runs.
    """
    options = pipeline_options(config)
    # Beam reports each start and each end of a worker; what fails comes as an exception.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        pipeline = beam.Pipeline(options=options)
    except (AttributeError, ImportError, ValueError) as error:
        raise InputError(
            f"Beam cannot start the runner {config.runner!r}: {error}",
            where="beam.runner",
            remedy="Use one of Beam's runners, as FnApiRunner or FlinkRunner, with the packages that it needs",
        ) from error
    with pipeline:
        build(pipeline)
