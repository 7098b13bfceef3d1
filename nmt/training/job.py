"""What crosses the border to a training worker: configs and folders, JSON values only."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nmt.architectures import ModelConfig
from nmt.config import TrackingConfig, TrainConfig
from pipelines.config import AugmentConfig


class BesideConfig(BaseModel):
    """How validation beside training runs: so many at once, in the places of a placement group of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int
    places: str
    use_gpu: bool
    max_retries: int


class TrainJob(BaseModel):
    """All that a worker needs to know. Folders are absolute, or URIs of a storage that all workers see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    train: TrainConfig
    folder: str
    shards: str
    references: str
    tokenizer: str
    bleu_tokenize: str
    threads: int
    augment: AugmentConfig
    weights: dict[str, float]
    curriculum: dict[str, tuple[int, int | None]] = {}  # epochs of corpora, see `training/mixing.py`
    tracking: TrackingConfig = TrackingConfig()
    alignments: str | None = None  # the folder of those of train, where attention is guided
    lease: str = ""  # the token of this run, see `training/lease.py`; without one there is no lease
    shard_model: bool = False  # see `training/sharding.py`; a single worker has all of it
    beside: BesideConfig | None = None  # None: the training workers validate, and wait for it

    @property
    def checkpoints(self) -> Path:
        """Return the folder of what training continues from."""
        return Path(self.folder) / "checkpoints"
