"""What crosses the border to a training worker: configs and folders, JSON values only."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nmt.architectures import ModelConfig
from nmt.config import TrackingConfig, TrainConfig
from pipelines.config import AugmentConfig


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
    tracking: TrackingConfig = TrackingConfig()

    @property
    def checkpoints(self) -> Path:
        """Return the folder of what training continues from."""
        return Path(self.folder) / "checkpoints"
