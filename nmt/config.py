"""The models', training's, translation's and evaluation's config: every default, unit and range check, once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config import Table

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class ModelTable(Table):
    """What every model has. Each architecture adds its own keys in its module of `nmt/model/`.

    Sizes are in units, dropout rates are probabilities of zeroing.
    """

    architecture: str
    embedding_dim: int = Field(default=256, ge=1)
    dropout: Probability = 0.3  # where it acts, each architecture says
    word_dropout: Probability = 0.0  # of whole pieces, source and target
    tie_target_embeddings: bool = True  # the output layer's weight is the target embedding
    share_embeddings: bool = True  # source and target; needs a joint tokeniser


class TrainConfig(Table):
    """Exact training. A micro-batch is what one worker computes at once, an update sums several of them."""

    seed: int = Field(default=1, ge=0, lt=2**31)
    max_epochs: int = Field(default=20, ge=1)
    max_updates: int | None = Field(default=None, ge=1)
    microbatch_tokens: int = Field(default=2048, ge=1)  # padded pieces of the longer side
    microbatches_per_update: int = Field(default=2, ge=1)
    max_pieces: int = Field(default=200, ge=2)  # a longer row, on either side, is left out of training and counted
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "inverse_sqrt", "cosine"] = "cosine"
    warmup_updates: int = Field(default=200, ge=0)
    adam_betas: tuple[Probability, Probability] = (0.9, 0.98)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    label_smoothing: Probability = 0.1
    ema_decay: Probability = 0.0  # 0: validate and publish the plain weights
    precision: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of float32 matrix products, see torch
    validate_epochs: int = Field(default=1, ge=1)
    validation_beam_size: int = Field(default=1, ge=1)
    early_stopping_metric: Literal["bleu", "loss"] = "bleu"
    patience: int = Field(default=10, ge=1)  # validations without a better one
    checkpoint_updates: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_updates: int = Field(default=20, ge=1)  # between two lines of metrics.jsonl


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
    threads_per_worker: int = Field(default=1, ge=1)
    use_gpu: bool = False
    translate_actors: int = Field(default=2, ge=1)
    max_failures: int = Field(default=3, ge=0)  # restarts of training's workers; attempts more at a translation shard
    object_store_memory_bytes: int = Field(default=200 * 2**20, ge=80 * 2**20)  # of a Ray of our own
