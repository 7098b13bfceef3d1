"""The models', training's, translation's and evaluation's config: every default, unit and range check, once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipelines.config import Table
from pipelines.errors import InputError

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Side = Literal["source", "target"]
VECTOR_KEYS = ("source_vectors", "target_vectors")


class ModelTable(Table):
    """What every model has. Each architecture adds its own keys in its module of `nmt/model/`.

    Sizes are in units, dropout rates are probabilities of zeroing.
    """

    has_source: ClassVar[bool] = True  # False of a language model, which reads one side alone and translates nothing
    compiles: ClassVar[bool] = True  # False where torch.compile would lose gradients

    architecture: str
    embedding_dim: int = Field(default=256, ge=1)
    dropout: Probability = 0.3  # where it acts, each architecture says
    word_dropout: Probability = 0.0  # of whole pieces, source and target
    tie_target_embeddings: bool = True  # the output layer's weight is the target embedding
    share_embeddings: bool = True  # source and target; needs a joint tokeniser
    # Files of vectors of words, of embedding_dim components: word2vec (text or binary) or fastText's .vec, plain or
    # compressed. The embeddings begin with them, see `nmt/pretrained.py`; of a shared table the source's come first.
    source_vectors: str | None = None
    target_vectors: str | None = None
    # In how many first updates the tables that begin with vectors stay exactly as they are; always: in all. A tied
    # output layer has the target table as its weight, so that it stays too.
    freeze_embeddings_updates: Annotated[int, Field(ge=0)] | Literal["always"] = 0

    @model_validator(mode="after")
    def _freezing_has_vectors(self) -> Self:
        if self.freeze_embeddings_updates != 0 and not self.vectors():
            raise ValueError(
                "freeze_embeddings_updates keeps tables that begin with vectors: set source_vectors or target_vectors, "
                "or leave it at 0"
            )
        return self

    def only_side(self) -> Side | None:
        """Return the side of the corpora that a language model reads; None of a model that translates."""
        return None

    def attends(self) -> bool:
        """Return whether the decoder attends to the source: a language model has none."""
        return self.has_source

    def most_pieces(self) -> int | None:
        """Return the pieces, EOS counted, beyond which a sequence is an error; None where there is no such bound."""
        return None

    def vectors(self) -> dict[str, str]:
        """Return the paths of the files of vectors, by their keys; of what there is, the source's first."""
        paths = {key: getattr(self, key) for key in VECTOR_KEYS}
        return {key: path for key, path in paths.items() if path is not None}

    def without_vectors(self) -> Self:
        """Return the table of the same model once it is trained: it needs no file to begin with."""
        return self.model_copy(update={**dict.fromkeys(VECTOR_KEYS), "freeze_embeddings_updates": 0})


class TrainConfig(Table):
    """Exact training. A micro-batch is what one worker computes at once, an update sums several of them."""

    seed: int = Field(default=1, ge=0, lt=2**31)
    max_epochs: int = Field(default=20, ge=1)
    max_updates: int | None = Field(default=None, ge=1)
    # The plan of an epoch
    microbatch_tokens: int = Field(default=2048, ge=1)  # padded pieces of the longer side
    microbatches_per_update: int = Field(default=2, ge=1)
    max_pieces: int = Field(default=200, ge=2)  # a longer row, on either side, is left out of training and counted
    # Rows that are sorted by length at once, of whole shards or of shares of those seen often; an epoch of fewer is one
    # window.
    window_rows: int = Field(default=2_000_000, ge=1)
    # Of the corpora's shares of an epoch, by their rows times their weights: p ~ n^(1/temperature). 1 leaves them.
    temperature: float = Field(default=1.0, ge=1.0)
    # What is trained, and from where
    start_from: str | None = None  # the folder of a published model whose weights training begins with
    # Parts that keep their weights, by the beginnings of parameters' names: `encoder`, `source_embedding`, ...
    freeze: tuple[str, ...] = ()
    # The objective
    label_smoothing: Probability = 0.1
    rdrop_weight: float = Field(default=0.0, ge=0.0)  # of the divergence between two passes with different dropout
    # Share of pieces that the decoder reads from the model's own predictions, in place of the reference's, once
    # `scheduled_sampling_updates` are done; it grows from 0 until then.
    scheduled_sampling: Probability = 0.0
    scheduled_sampling_updates: int = Field(default=10_000, ge=1)
    guided_alignment_weight: float = Field(default=0.0, ge=0.0)  # of attention's cross-entropy against alignments
    # The optimiser and its learning rate
    optimizer: Literal["adam", "adamw", "sgd", "adafactor"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "inverse_sqrt", "noam", "cosine", "linear", "plateau", "halving"] = "cosine"
    warmup_updates: int = Field(default=200, ge=0)
    plateau_factor: float = Field(default=0.5, gt=0.0, lt=1.0)  # plateau: what the rate is multiplied by ...
    plateau_patience: int = Field(default=2, ge=1)  # ... after so many validations in a row without a better one
    halving_after_epochs: int = Field(default=8, ge=0)  # halving: the rate is half of it in each epoch after these
    adam_betas: tuple[Probability, Probability] = (0.9, 0.98)
    momentum: Probability = 0.0  # of sgd
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    clip_value: float | None = Field(default=None, gt=0)  # of each number of the gradient, before its norm
    # An update whose loss or gradient is not finite is left out; so many in a row end the run, its batch saved.
    max_skipped_updates: int = Field(default=5, ge=1)
    # Weights that are validated and published
    ema_decay: Probability = 0.0  # 0: the plain weights
    average_checkpoints: int = Field(default=1, ge=1)  # at the end, the mean of the best so many that were validated
    # Arithmetic
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # float16: on a GPU
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of float32 matrix products, see torch
    compile: bool = False  # the model by torch.compile; needs a C++ compiler on CPUs
    # Validation, early stopping
    validate_epochs: int | None = Field(default=1, ge=1)
    validate_updates: int | None = Field(default=None, ge=1)  # beside the epochs' ends, or with epochs null alone
    validation_beam_size: int = Field(default=1, ge=1)
    early_stopping_metric: Literal["bleu", "chrf", "loss", "perplexity"] = "bleu"
    patience: int = Field(default=10, ge=1)  # validations without a better one
    # Checkpoints and the record: these decide nothing of what is learned
    checkpoint_updates: int | None = Field(default=500, ge=1)
    checkpoint_minutes: float | None = Field(default=10.0, gt=0)  # since the last one, of any kind
    keep_checkpoints: int = Field(default=2, ge=1)
    log_updates: int = Field(default=20, ge=1)  # between two lines of metrics.jsonl

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is of sgd, and the optimizer is {self.optimizer}")
        if self.schedule == "noam" and not self.warmup_updates:
            raise ValueError("the schedule noam needs warmup_updates")
        if self.schedule == "noam" and "learning_rate" not in self.model_fields_set:
            raise ValueError("the schedule noam needs a learning_rate: there it is a factor, 1 or so, and no rate")
        if self.schedule == "plateau" and self.plateau_patience >= self.patience:
            raise ValueError(
                f"with plateau_patience {self.plateau_patience} training would end, at patience {self.patience}, "
                "before the rate falls"
            )
        if self.validate_epochs is None and self.validate_updates is None:
            raise ValueError("set validate_epochs or validate_updates: without a validation there is no best model")
        return self


# What a run may be continued with another value of: these keys are no part of what the stage `train` is named by.
RECORD_KEYS = frozenset({"checkpoint_updates", "checkpoint_minutes", "keep_checkpoints", "log_updates"})


def check_stopping(model: ModelTable, train: TrainConfig) -> None:
    """Raise InputError where training would stop by the translations of a model that translates nothing."""
    if not model.has_source and train.early_stopping_metric in ("bleu", "chrf"):
        raise InputError(
            f"a language model translates nothing, so that it has no {train.early_stopping_metric} to stop by",
            where="train.early_stopping_metric",
            remedy="Set train.early_stopping_metric: loss",
        )


def check_guidance(model: ModelTable, train: TrainConfig) -> None:
    """Raise InputError where an attention that a model has not would be guided."""
    if train.guided_alignment_weight > 0.0 and not model.attends():
        raise InputError(
            "guided alignment is of a decoder's attention over the source, and this model has none",
            where="train.guided_alignment_weight",
            remedy="Set it to 0, or take a model with attention",
        )


def check_beside(train: TrainConfig, ray: RayConfig) -> None:
    """Raise InputError where training could not go on without the scores of the validation before."""
    if ray.validation_workers and train.schedule == "plateau":
        raise InputError(
            "the schedule plateau needs a validation's scores before the next update",
            where="ray.validation_workers",
            remedy="Set ray.validation_workers: 0 in the profile, or another train.schedule",
        )


def check_sharding(model: ModelTable, train: TrainConfig, ray: RayConfig) -> None:
    """Raise InputError where a model cannot be dealt out over the workers."""
    if ray.shard_model and (ray.min_workers or ray.num_workers) == 1:
        raise InputError(
            "a model is dealt out over several workers, and there may be one alone",
            where="ray.shard_model",
            remedy="Raise ray.num_workers and ray.min_workers, or set ray.shard_model: false",
        )
    updates = model.freeze_embeddings_updates
    refused = {
        "train.optimizer": train.optimizer == "adafactor",  # sums of whole rows and columns
        "train.compile": train.compile,
        "model.batch_norm": getattr(model, "batch_norm", False),  # sums of whole micro-batches
        "model.freeze_embeddings_updates": isinstance(updates, int) and updates > 0,
    }
    for key, is_refused in refused.items():
        if ray.shard_model and is_refused:
            raise InputError(
                f"a model with this {key} cannot be dealt out over the workers",
                where=key,
                remedy="Change it, or set ray.shard_model: false in the profile",
            )


class TranslateConfig(Table):
    """Search. Hypotheses are ranked by log probability / length^length_penalty."""

    method: Literal["beam", "greedy"] = "beam"
    beam_size: int = Field(default=5, ge=1, le=100)
    length_penalty: float = Field(default=1.0, ge=0.0)
    max_length_factor: float = Field(default=2.0, gt=0)  # at most factor * source pieces + offset target pieces
    max_length_offset: int = Field(default=10, ge=1)
    max_source_pieces: int = Field(default=200, ge=8)  # a longer line is split at sentence ends and joined again
    batch_tokens: int = Field(default=1024, ge=1)  # source pieces, padded, in a batch
    rows_per_shard: int = Field(default=500, ge=1)  # of work: what an actor takes, and a restart does again
    precision: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"


class ScoreConfig(Table):
    """Log probabilities of lines. Pieces count the end of the sentence."""

    max_pieces: int = Field(default=1000, ge=1)  # a longer line, on either side, has no score and is named
    batch_tokens: int = Field(default=2048, ge=1)  # padded pieces of the longer side in a batch
    lines_at_once: int = Field(default=10_000, ge=1)  # of which those of like length make a batch


class EvaluateConfig(Table):
    """sacreBLEU's metrics and the bootstrap of their confidence intervals."""

    metrics: tuple[Literal["bleu", "chrf", "ter"], ...] = ("bleu", "chrf", "ter")
    bleu_tokenize: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = "13a"
    bootstrap_resamples: int = Field(default=1000, ge=100)
    bootstrap_seed: int = Field(default=12345, ge=0)


class RayConfig(Table):
    """Where Ray runs. `address: null` starts a Ray of our own; workers are of training, actors of translation."""

    address: str | None = None
    num_workers: int = Field(default=2, ge=1)
    # With fewer than num_workers, training goes on when a node is lost, and grows again when one is gained. Null: all
    # of them are waited for.
    min_workers: int | None = Field(default=None, ge=1)
    validation_workers: int = Field(default=0, ge=0)  # beside the others, so that training does not wait; 0: it waits
    threads_per_worker: int = Field(default=1, ge=1)
    use_gpu: bool = False
    # Weights, gradients, moments and averages are dealt out over the workers: for models that do not fit into one.
    shard_model: bool = False
    translate_actors: int = Field(default=2, ge=1)
    max_failures: int = Field(default=3, ge=0)  # restarts of training's workers; attempts more at a translation shard
    object_store_memory_bytes: int = Field(default=200 * 2**20, ge=80 * 2**20)  # of a Ray of our own

    def worker_resources(self) -> dict[str, float]:
        """Return what Ray reserves for each worker, of training or of validation beside it."""
        cpus: dict[str, float] = {"CPU": self.threads_per_worker}
        return cpus | {"GPU": 1} if self.use_gpu else cpus

    @model_validator(mode="after")
    def _min_workers_fit(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, and num_workers only {self.num_workers}")
        return self


class TrackingConfig(Table):
    """Where figures of training go beside metrics.jsonl and TensorBoard; each needs its library."""

    wandb_project: str | None = None
    mlflow_uri: str | None = None
    mlflow_experiment: str = "seqloom"


class PricesConfig(Table):
    """What an hour costs, for the ledger of a training run. Zero: not stated."""

    currency: str = "USD"
    worker_hour: float = Field(default=0.0, ge=0)  # of one worker, with its CPUs and GPU
    machine_hour: float = Field(default=0.0, ge=0)  # of the whole, whatever the workers do

    def cost(self, worker_hours: float, wall_hours: float) -> float | None:
        """Return what so many hours of all workers together, and of the clock, cost; None where no price is stated."""
        if not (self.worker_hour or self.machine_hour):
            return None
        return worker_hours * self.worker_hour + wall_hours * self.machine_hour
