"""Shards to translations to scores: models, exact training, search, batch translation and evaluation."""
