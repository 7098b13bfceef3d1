"""A stage's process for the tests of the flow: `fake_stage.py BEHAVIOUR NAME RECIPE --workdir DIR ...`.

It writes a manifest with figures and a result like `seqloom stage`; the behaviour makes it fail first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from pipelines.stage import StageResult, run_stage

COUNTERS: dict[str, dict[str, object]] = {
    "clean": {
        "waterfall": [{"split": "train", "corpus": "a", "read": 9, "kept": 7, "rejected": {"html": 2, "copy": 0}}]
    },
    "evaluate": {
        "tests": {
            "a": {"rows": 5, "metrics": {"bleu": {"score": 61.25, "signature": "nrefs:1", "confidence": [60, 62]}}}
        }
    },
}


def write_scores(folder: Path) -> StageResult:
    name = sys.argv[2]
    (folder / "scores.json").write_text(json.dumps(COUNTERS.get(name, {})))
    return StageResult(["scores.json"], dict(COUNTERS.get(name, {})))


def attempts(workdir: Path, name: str) -> int:
    path = workdir / f"{name}.attempts"
    count = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(count))
    return count


def main() -> None:
    behaviour, name, _recipe, *options = sys.argv[1:]
    workdir = Path(options[options.index("--workdir") + 1])
    attempt = attempts(workdir, name)
    print(f"{name}: attempt {attempt}", file=sys.stderr, flush=True)
    if (behaviour, name) == ("bad-input", "fit_tokenizer"):
        print(json.dumps({"error": {"what": "no text", "where": "a.en", "remedy": "Give another file"}}))
        raise SystemExit(2)
    if (behaviour, name) == ("killed-once", "fit_tokenizer") and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    inputs = [options[at + 1].partition("=")[0] for at, option in enumerate(options) if option == "--input"]
    run = run_stage(name, 1, {}, dict.fromkeys(inputs, "digest"), workdir / "stages", write_scores)
    print(json.dumps({"folder": str(run.folder)}))


main()
