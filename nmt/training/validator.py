"""What a validation does: scores on dev, the best models kept, early stopping's count, a record with samples.

Whether one is due is decided by the state alone. It is done by the training workers, who wait for it, or beside them,
see `nmt/training/beside.py`; then its scores are judged later, and in the order of the updates: so the models that are
kept, and where early stopping ends, are the same.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist

from nmt.checkpoint import TrainState, load_model, model_content
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.averaging import average_best
from nmt.training.beside import weights_folder
from nmt.training.run import Run
from nmt.training.saver import asked_folder, best_folder, save_best
from nmt.training.schedules import on_validation
from nmt.training.validation import Scores, metric_of, perplexity, score_model

_PENDING_PER_WORKER = 2  # validations that are asked for or under way; with more training waits, else they pile up
_WAIT_S = 30.0  # between two looks of all workers: far less than a collective's time limit


def settle(run: Run) -> None:
    """Do all that validations have to do at this update; called after each, at each end of an epoch, and at the start.

    Sets `run.state.stopped` when patience is at its end, or training. Every worker calls it at the same states.
    """
    config = run.job.train
    if run.state.stopped is not None:
        return
    if run.job.beside is None:
        for update, epoch in run.state.pending_validations:  # of a run that had workers for them, and now has none
            if run.state.stopped is None:
                _judge(run, update, epoch, _score_asked(run, update))
                _keep_asked(run, update)
    if run.state.stopped is None and due(config, run.state):
        _validate(run)
    if run.job.beside is not None and _looks(config, run.state):
        _take(run, run.job.beside.workers)
    if run.state.stopped is None and is_last(config, run.state):
        stopped = "max_updates" if run.state.update == config.max_updates else "max_epochs"
        run.state = run.state.model_copy(update={"stopped": stopped})
    if run.state.stopped is not None:  # before the state is saved: what has stopped is ready to be published
        average_best(run)


def waits(run: Run) -> bool:
    """Return whether `settle` makes training wait at this state: for a validation, or for those beside training."""
    config, state = run.job.train, run.state
    if state.stopped is not None:
        return False
    asks = due(config, state)
    if run.job.beside is None:
        return asks
    open_then = len(state.pending_validations) + asks
    return (asks or _looks(config, state)) and open_then > _most_pending(run, run.job.beside.workers)


def is_last(config: TrainConfig, state: TrainState) -> bool:
    """Return whether no update comes after this state."""
    return state.update == config.max_updates or state.epoch >= config.max_epochs


def due(config: TrainConfig, state: TrainState) -> bool:
    """Return whether this state is to be validated, and has not been yet. The last of a run always is."""
    asked = [update for update, _ in state.pending_validations]
    if state.update <= max([state.validated_update, *asked]):
        return False
    by_updates = config.validate_updates is not None and state.update % config.validate_updates == 0
    by_epochs = config.validate_epochs is not None and _at_epoch(state) and state.epoch % config.validate_epochs == 0
    return by_updates or by_epochs or is_last(config, state)


def judged(state: TrainState, config: TrainConfig, update: int, dev: Mapping[str, float]) -> TrainState:
    """Return the state once the scores of an update are known: its best models, early stopping and the plateau.

    `dev` has loss, and bleu and chrf where there are translations. Updates must come in their order. A model
    with any score that is not finite is never better; of equal ones the first is.
    """
    metric = metric_of(config, dev) if all(math.isfinite(score) for score in dev.values()) else math.nan
    better = math.isfinite(metric) and (state.best_metric is None or metric > state.best_metric)
    changes: dict[str, Any] = {
        "validated_update": update,
        "pending_validations": tuple(pending for pending in state.pending_validations if pending[0] > update),
        "best_models": _best_models(state, config, update, metric),
        "validations_since_best": 0 if better else state.validations_since_best + 1,
    }
    if better:
        changes |= {"best_update": update, "best_metric": metric, "best_dev": dict(dev)}
    elif changes["validations_since_best"] >= config.patience:
        changes |= {"stopped": "patience", "pending_validations": ()}
    return on_validation(state.model_copy(update=changes), config, better)


def validation_record(state: TrainState, update: int, epoch: int, scores: Scores) -> dict[str, Any]:
    """Return the line of metrics of a validation that `state` has judged."""
    return {
        "kind": "validation",
        "update": update,
        "epoch": epoch,
        "loss": _finite(scores.dev["loss"]),
        "perplexity": _finite(perplexity(scores.dev["loss"], 1)),
        **{name: scores.dev[name] for name in ("bleu", "chrf") if name in scores.dev},
        "best": state.best_update == update,
        "seconds": scores.seconds,
        "loss_seconds": scores.loss_seconds,
        "search_seconds": scores.search_seconds,
        "samples": scores.samples,
        "attention": scores.attention,
    }


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None  # JSON has no other numbers


def _best_models(state: TrainState, config: TrainConfig, update: int, metric: float) -> tuple[tuple[int, float], ...]:
    if not math.isfinite(metric):
        return state.best_models
    candidates = [*state.best_models, (update, metric)]
    return tuple(sorted(candidates, key=lambda model: (-model[1], model[0]))[: config.average_checkpoints])


def _at_epoch(state: TrainState) -> bool:
    return state.update > 0 and state.updates_of_epoch == 0


def _validate(run: Run) -> None:
    """Score the (averaged) weights, or have them scored beside training."""
    update, epoch = run.state.update, run.state.epoch - _at_epoch(run.state)  # the epoch of the last update
    with averaged(run), run.whole(computes=run.job.beside is None) as model:
        if run.job.beside is None:
            _judge(run, update, epoch, _scores(run, model))
            if update in dict(run.state.best_models):
                save_best(run, model)
            return
        if run.saver is not None and run.beside is not None:
            folder = asked_folder(run.job.checkpoints, update)
            content = model_content(model, run.checkpoint_config())
            run.saver.save_model(folder, content, functools.partial(run.beside.ask, update))
    asked = (*run.state.pending_validations, (update, epoch))
    run.state = run.state.model_copy(update={"pending_validations": asked})


def _looks(config: TrainConfig, state: TrainState) -> bool:
    """Return whether the workers look for scores at this state: rarely enough that it costs nothing."""
    asked_now = state.update in dict(state.pending_validations)
    by_log = state.update % config.log_updates == 0
    return bool(state.pending_validations) and (asked_now or by_log or _at_epoch(state) or is_last(config, state))


def _take(run: Run, workers: int) -> None:
    """Judge what has been scored beside training, in the order of the updates; wait where too much is open.

    The worker of rank 0 has the scores, and all judge them alike.
    """
    most = _most_pending(run, workers)
    while run.state.pending_validations:
        pending = run.state.pending_validations
        waits = len(pending) > most
        found: list[Any] = [None]
        if run.beside is not None:
            found = [run.beside.finished([update for update, _ in pending], _WAIT_S if waits else 0.0)]
        if run.world.size > 1:
            dist.broadcast_object_list(found, src=0)
        for (update, epoch), scores in zip(pending, found[0]):
            if run.state.stopped is None:
                _judge(run, update, epoch, scores)
                _keep_asked(run, update)
        if not waits:
            return


def _most_pending(run: Run, workers: int) -> int:
    """Return how many validations may be open beside training behind this state without its waiting for them."""
    return 0 if is_last(run.job.train, run.state) else _PENDING_PER_WORKER * workers


def _score_asked(run: Run, update: int) -> Scores:
    """Return the scores of weights that a run with workers for it has left to score."""
    model, _ = load_model(weights_folder(run.job.checkpoints, update), tokenizer=run.tokenizer.digest)
    return _scores(run, model.to(run.world.device))


def _judge(run: Run, update: int, epoch: int, scores: Scores) -> None:
    run.state = judged(run.state, run.job.train, update, scores.dev)
    if run.metrics is not None:
        run.metrics.write(validation_record(run.state, update, epoch, scores))


def _keep_asked(run: Run, update: int) -> None:
    """Give weights that were scored from a folder the name of a best model, where they are one."""
    if run.saver is not None and update in dict(run.state.best_models):
        folder = run.job.checkpoints
        run.saver.rename_model(asked_folder(folder, update), best_folder(folder, update))


def _scores(run: Run, model: Seq2Seq) -> Scores:
    return score_model(model, run.dev, run.references, run.tokenizer, run.job, run.world)


@contextlib.contextmanager
def averaged(run: Run) -> Iterator[None]:
    """Have the averages in the model's place, where training averages."""
    if run.averages is None:
        yield
        return
    run.averages.swap()
    try:
        yield
    finally:
        run.averages.swap()
