"""What a validation does: scores on dev, the best model kept, early stopping's count, a record with samples."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import numpy as np

from nmt.checkpoint import save_model
from nmt.evaluate import corpus_bleu
from nmt.training.run import Run
from nmt.training.saver import best_folder
from nmt.training.validation import score_rows

_NUM_SAMPLES = 3


def validate(run: Run) -> None:
    """Score the (averaged) weights on dev by loss and by BLEU of real translations; keep them if they are the best.

    Of a language model there is the loss alone.
    """
    started = time.monotonic()
    with _averaged(run):
        loss, translations = score_rows(run.model, run.dev, run.tokenizer, run.job.train, run.world)
        bleu = {}
        if run.model.config.has_source:
            bleu = {"bleu": corpus_bleu(translations, run.references, run.job.bleu_tokenize)}
        dev = {"loss": loss, **bleu}
        metric = dev["bleu"] if run.job.train.early_stopping_metric == "bleu" else -loss
        best = run.state.best_metric is None or metric > run.state.best_metric
        if best:
            run.state = run.state.model_copy(
                update={
                    "best_update": run.state.update,
                    "best_metric": metric,
                    "best_dev": dev,
                    "validations_since_best": 0,
                }
            )
            if run.world.rank == 0:
                save_model(best_folder(run.job.checkpoints, run.state.update), run.model, run.checkpoint_config())
        else:
            since = run.state.validations_since_best + 1
            run.state = run.state.model_copy(update={"validations_since_best": since})
    spread = np.linspace(0, len(translations) - 1, num=min(_NUM_SAMPLES, len(translations))).astype(int)
    sources = [run.dev.src[run.dev.src_offsets[i] : run.dev.src_offsets[i + 1]].tolist() for i in spread]
    record = {
        "kind": "validation",
        "update": run.state.update,
        "epoch": run.state.epoch,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        **bleu,
        "best": best,
        "seconds": round(time.monotonic() - started, 3),
        "samples": [
            {"source": source, "reference": run.references[i], "hypothesis": translations[i]}
            for source, i in zip(run.tokenizer.decode_source(sources), spread)
        ],
    }
    if run.metrics is not None:
        run.metrics.write(record)


@contextlib.contextmanager
def _averaged(run: Run) -> Iterator[None]:
    if run.averages is None:
        yield
        return
    run.averages.swap()
    try:
        yield
    finally:
        run.averages.swap()
