"""What train shares with dev or test: rows that would let a model be scored on what it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.characters import Counts, Flags
from pipelines.dedup import FoldedKeys, Keys, pair_keys

HELD_OUT_SPLITS = ("dev", "test")
LEAKAGE_REASONS = tuple(f"leakage_{split}" for split in HELD_OUT_SPLITS)
NO_LEAK = -1
_KINDS = ("src", "tgt", "pair")


@dataclass(frozen=True)
class HeldOutKeys:
    """Folded keys of a held-out split, each sorted and unique: of the long enough sides, and of all pairs."""

    src: Keys
    tgt: Keys
    pair: Keys

    def to_bytes(self) -> dict[str, bytes]:
        """Return the keys as bytes, little-endian, for the way through a shuffle."""
        return {kind: getattr(self, kind).astype("<u8").tobytes() for kind in _KINDS}


def held_out_keys(src: FoldedKeys, tgt: FoldedKeys, min_characters: int) -> HeldOutKeys:
    """Return what of some dev or test rows must not occur in train.

    A side counts by itself from `min_characters` letters and digits on: shorter ones recur by chance.
    """
    return HeldOutKeys(
        np.unique(src.keys[src.lengths >= min_characters]),
        np.unique(tgt.keys[tgt.lengths >= min_characters]),
        np.unique(pair_keys(src.keys, tgt.keys)),
    )


def merged(parts: Iterable[Mapping[str, bytes]]) -> HeldOutKeys:
    """Return the union of several parts, each as `HeldOutKeys.to_bytes` gave it."""
    parts = list(parts)
    return HeldOutKeys(
        **{kind: np.unique(np.frombuffer(b"".join(part[kind] for part in parts), dtype="<u8")) for kind in _KINDS}
    )


def leaks(src: Keys, tgt: Keys, held_out: Mapping[str, HeldOutKeys]) -> Counts:
    """Return the place in LEAKAGE_REASONS of the first split that each train row leaks from, else NO_LEAK: [rows].

    `src` and `tgt` are the folded keys of train's rows; a row leaks when either side, or the pair, is held out.
    """
    found = np.full(len(src), NO_LEAK, dtype=np.int64)
    pair = pair_keys(src, tgt)
    for place, split in enumerate(HELD_OUT_SPLITS):
        held = held_out.get(split)
        if held is not None:
            leak = _among(src, held.src) | _among(tgt, held.tgt) | _among(pair, held.pair)
            found[leak & (found == NO_LEAK)] = place
    return found


def _among(keys: Keys, ordered: Keys) -> Flags:
    if not len(ordered):
        return np.zeros(len(keys), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    among: Flags = ordered[places] == keys
    return among
