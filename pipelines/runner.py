"""How the Beam stages run: pipeline options from the profile, and a quiet log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.config import BeamConfig
from pipelines.errors import InputError


@contextmanager
def _silenced() -> Iterator[None]:
    # Importing Beam warns of each cloud package that is not there, and configures the root logger on the way.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().removeHandler(handler)


with _silenced():
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

__all__ = ["beam", "pipeline_options", "run_pipeline"]


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


def run_pipeline(build: Callable[[beam.Pipeline], None], config: BeamConfig) -> None:
    """Build a pipeline and run it to its end. Raises InputError as `pipeline_options` does, before anything runs."""
    options = pipeline_options(config)
    # Beam reports each start of a worker and each missing cloud package; what fails comes as an exception.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline)
