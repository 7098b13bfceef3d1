"""Where the model looks in the sample translations of a validation: as JSON, and as pictures for TensorBoard.

<folder>/attention/update-<n>.json has, for each sample, what `attention.json` of the stage translate has:
source_pieces, target_pieces, attention [target pieces][source pieces], each row a distribution.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nmt.batches import padded
from nmt.model.seq2seq import Seq2Seq
from pipelines.stage import write_atomically
from pipelines.tokenizer import BOS_ID, Tokenizer

FOLDER = "attention"
_CELL = 0.28  # inches of a picture for each piece
_DOTS = 80  # an inch


def attention_maps(
    model: Seq2Seq, samples: Sequence[Mapping[str, str]], tokenizer: Tokenizer, device: torch.device
) -> list[dict[str, Any]]:
    """Return the attention of the model led through the hypothesis of each sample; none of a model without attention.

    Samples have `source` and `hypothesis`; one whose hypothesis is empty is left out.
    """
    found = []
    for sample in samples:
        if not sample["hypothesis"]:
            continue
        source = tokenizer.encode_source([sample["source"]])[0]
        target = tokenizer.encode_target([sample["hypothesis"]])[0]
        ids, lengths = padded([np.asarray(source, dtype=np.int32)])
        previous = torch.tensor([[BOS_ID, *target[:-1]]])
        with torch.inference_mode():
            weights = model(ids.to(device), lengths.to(device), previous.to(device), need_weights=True).weights
        if weights is None:
            return []
        found.append(
            {
                "source": sample["source"],
                "hypothesis": sample["hypothesis"],
                "source_pieces": tokenizer.source_pieces(source),
                "target_pieces": tokenizer.target_pieces(target),
                "attention": [[round(weight, 4) for weight in row] for row in weights[0].tolist()],
            }
        )
    return found


def write_maps(folder: Path, update: int, maps: Sequence[Mapping[str, Any]]) -> Path:
    """Return the file that the maps of a validation were written to."""
    path = folder / FOLDER / f"update-{update:08d}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(list(maps), ensure_ascii=False, indent=1) + "\n")
    return path


def picture(attention: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Return a map as a picture [height, width, 3]: the source's pieces below, those of the translation on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    source, target = attention["source_pieces"], attention["target_pieces"]
    figure = Figure(figsize=(2 + _CELL * len(source), 1.5 + _CELL * len(target)), dpi=_DOTS, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.asarray(attention["attention"]), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(target)), target, fontsize=8, parse_math=False)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A script that the font has not is drawn as boxes; the JSON file has the pieces themselves.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        canvas.draw()
    pixels: npt.NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels
