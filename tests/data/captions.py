"""Make the demo corpus: English-German captions, notices, dates, prices and directions, and noise among them.

    python tests/data/captions.py OUT_DIR [--pairs 8000] [--seed 1]

Takes seconds. Outputs, the same text for the same arguments on every machine:

    OUT_DIR/train.en.gz  train.de.gz    captions, one sentence a line, with noise
    OUT_DIR/notices.tsv                 notices, prices, dates, directions; header line (id, en, de); with noise
    OUT_DIR/dev.en   dev.de             200 clean pairs of both kinds
    OUT_DIR/test.en  test.de            400 clean pairs of both kinds
    OUT_DIR/made.json                   how many clean pairs and how much noise of each kind went into train

`--pairs` counts the clean pairs of train. No source and no target of dev or test occurs among them, whatever the case
and the punctuation. Noise of every kind of NOISE is added: its shares are of the clean pairs.

Sentences come from a grammar (`captions_grammar.py`) with a lexicon (`captions_words.py`), so that the test sentences
are new combinations of known words. German orders words in its own way: time before place, an indefinite object after
the place, the verb second or last, prefixes at the end. Some English words need their context: to paint (malen,
streichen), to put on (anziehen, aufsetzen), to eat (essen, fressen), to wash (waschen, spülen), to ride (fahren,
reiten), light (leicht, hell), ticket (Fahrkarte, Eintrittskarte), floor (Stock, Boden), it (er, sie, es).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captions_grammar import Grammar
from captions_words import Pair

DEV_PAIRS, TEST_PAIRS = 200, 400
NOTICE_SHARE = 0.32  # of the pairs; the rest are captions

# Noise in train: kind -> share of the clean pairs. `shifted` is one block of lines.
NOISE: dict[str, float] = {
    "empty_source": 0.004,
    "empty_target": 0.004,
    "empty_both": 0.002,
    "french_target": 0.010,
    "spanish_target": 0.006,
    "english_target": 0.006,
    "markup": 0.008,
    "mojibake": 0.008,
    "replacement_character": 0.004,
    "invalid_utf8": 0.004,
    "control_character": 0.004,
    "shifted": 0.020,
    "exact_copy": 0.030,
    "near_copy": 0.020,
    "source_copied": 0.008,
    "too_long_target": 0.005,
    "too_short_target": 0.005,
    "long_line": 0.002,
    "repeated_word": 0.005,
    "wrong_number": 0.008,
    "url_on_one_side": 0.005,
    "cyrillic_target": 0.005,
    "leaked_test": 0.006,
    "leaked_dev": 0.003,
    "too_few_columns": 0.001,
}

Kind = Literal["caption", "notice"]
Line = tuple[bytes, bytes]

_FRENCH = (
    ("Une femme", "Un homme", "Un enfant", "Le chien", "Le professeur", "La voisine"),
    ("attend", "dort", "joue", "travaille", "chante"),
    ("devant la gare", "derrière la maison", "dans le jardin", "devant l'église", "dans la cuisine", "près du pont"),
    ("ce matin.", "le soir.", "depuis une heure.", "tous les jours."),
)
_SPANISH = (
    ("Una mujer", "Un hombre", "Un niño", "El perro", "La vecina"),
    ("espera", "duerme", "juega", "trabaja", "canta"),
    ("delante de la estación", "detrás de la casa", "en el jardín", "en la cocina", "cerca del puente"),
    ("por la mañana.", "por la noche.", "desde hace una hora.", "todos los días."),
)
_PAGES = ("index", "contact", "news", "tickets", "gallery", "prices")
_RUSSIAN = (
    ("Женщина", "Мужчина", "Ребёнок", "Собака", "Учитель"),
    ("ждёт", "спит", "играет", "работает", "поёт"),
    ("перед домом", "в парке", "на вокзале", "в школе", "у реки"),
    ("утром.", "вечером.", "каждый день.", "уже час."),
)


def folded(text: str) -> str:
    """Return what is compared between the splits: letters and digits without case."""
    return "".join(character for character in text.casefold() if character.isalnum())


class Maker:
    """Makes pairs of which no source and no target came before, folded."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._grammar = Grammar(rng)
        self._seen: tuple[set[str], set[str]] = (set(), set())

    def new(self, kind: Kind, fits: Callable[[Pair], bool] = lambda _: True) -> Pair:
        """Return the next new pair of a kind that fits."""
        for _ in range(100_000):
            pair = self._grammar.caption() if kind == "caption" else self._grammar.notice()
            en, de = folded(pair[0]), folded(pair[1])
            if en not in self._seen[0] and de not in self._seen[1] and fits(pair):
                self._seen[0].add(en)
                self._seen[1].add(de)
                return pair
        raise RuntimeError(f"the grammar has no new {kind} left; ask for fewer pairs")

    def many(self, count: int) -> dict[Kind, list[Pair]]:
        """Return `count` new pairs, of both kinds in their shares."""
        notices = round(count * NOTICE_SHARE)
        return {
            "caption": [self.new("caption") for _ in range(count - notices)],
            "notice": [self.new("notice") for _ in range(notices)],
        }


@dataclass(frozen=True)
class Corpus:
    """The pairs of each split: train clean and by kind, its noise, dev and test."""

    train: dict[Kind, list[Pair]]
    noise: dict[Kind, list[Line]]
    shifted: list[Line]
    too_few_columns: list[bytes]
    dev: list[Pair]
    test: list[Pair]
    counts: dict[str, int]


def make_corpus(pairs: int, seed: int) -> Corpus:
    """Return the corpus of so many clean training pairs."""
    rng = random.Random(seed)
    maker = Maker(rng)
    train, dev, test = maker.many(pairs), _mixed(maker.many(DEV_PAIRS), rng), _mixed(maker.many(TEST_PAIRS), rng)
    clean = [*train["caption"], *train["notice"]]
    for side in (0, 1):
        unseen = {folded(pair[side]) for pair in [*dev, *test]}
        assert len(unseen) == len(dev) + len(test)
        assert unseen.isdisjoint(folded(pair[side]) for pair in clean)
    counts = {kind: max(1, round(share * pairs)) for kind, share in NOISE.items()}
    noise: dict[Kind, list[Line]] = {"caption": [], "notice": []}
    for kind, count in counts.items():
        if kind in ("shifted", "too_few_columns"):
            continue
        for _ in range(count):
            where: Kind = "notice" if kind == "wrong_number" or rng.random() < NOTICE_SHARE else "caption"
            noise[where].append(_noisy(kind, where, maker, train, {"leaked_dev": dev, "leaked_test": test}))
    block = [maker.new("caption") for _ in range(counts["shifted"])]
    shifted = [_line(source, block[row - 1][1]) for row, (source, _) in enumerate(block)]
    few = [maker.new("notice")[0].encode() for _ in range(counts["too_few_columns"])]
    return Corpus(train, noise, shifted, few, dev, test, counts)


def _mixed(pairs: dict[Kind, list[Pair]], rng: random.Random) -> list[Pair]:
    mixed = [*pairs["caption"], *pairs["notice"]]
    rng.shuffle(mixed)
    return mixed


def _line(source: str, target: str) -> Line:
    return source.encode(), target.encode()


def _noisy(kind: str, where: Kind, maker: Maker, train: dict[Kind, list[Pair]], heldout: dict[str, list[Pair]]) -> Line:
    """Return one line of a kind of NOISE."""
    rng = maker.rng
    if kind in heldout:
        source, target = rng.choice(heldout[kind])
        return _line(source, target) if rng.random() < 0.5 else _line(source.upper(), target.removesuffix("."))
    if kind in ("exact_copy", "near_copy"):
        source, target = rng.choice(train[where])
        return _line(source, target) if kind == "exact_copy" else _line(*_nearly(source, target, rng))
    if kind == "long_line":
        joined = rng.sample(train[where], min(60, len(train[where])))
        return _line(" ".join(source for source, _ in joined), " ".join(target for _, target in joined))
    source, target = maker.new(where, _NEEDS.get(kind, lambda _: True))
    match kind:
        case "empty_source":
            return _line("", target)
        case "empty_target":
            return _line(source, "")
        case "empty_both":
            return _line("", " ")
        case "invalid_utf8":
            return source.encode(), target.encode("cp1252")
        case "source_copied":
            return _line(source, source)
        case "markup":
            return _line(
                f"<p>{source}</p>", rng.choice((f"<p>{target}</p>", f'<b class="text">{target}</b>&nbsp;<br/>'))
            )
        case "url_on_one_side":
            return _line(source, f"{target} http://www.example.org/{rng.choice(_PAGES)}.html")
        case "repeated_word":
            return _line(_stuck(source, rng), _stuck(target, rng))
        case "english_target":
            return _line(source, maker.new(where)[0])
    return _line(source, _spoilt_target(kind, target, rng, train[where]))


# Noise that shows only in some pairs.
_NEEDS: dict[str, Callable[[Pair], bool]] = {
    "mojibake": lambda pair: not pair[1].isascii(),
    "replacement_character": lambda pair: any(letter in pair[1] for letter in "äöüß"),
    "invalid_utf8": lambda pair: not pair[1].isascii(),
    "wrong_number": lambda pair: any(character.isdigit() for character in pair[1]),
    "too_short_target": lambda pair: len(pair[0].split()) >= 8,
}


def _spoilt_target(kind: str, target: str, rng: random.Random, clean: Sequence[Pair]) -> str:
    words = target.split(" ")
    match kind:
        case "french_target":
            return " ".join(rng.choice(words) for words in _FRENCH)
        case "spanish_target":
            return " ".join(rng.choice(words) for words in _SPANISH)
        case "cyrillic_target":
            return " ".join(rng.choice(words) for words in _RUSSIAN)
        case "mojibake":
            return target.encode().decode("cp1252")
        case "replacement_character":
            return "".join("\ufffd" if letter in "äöüß" else letter for letter in target)
        case "control_character":
            cut = rng.randrange(1, len(target))
            return target[:cut] + rng.choice("\x07\x0b\x1b") + target[cut:]
        case "too_long_target":
            return " ".join([target, *(pair[1] for pair in rng.sample(clean, 4))])
        case "too_short_target":
            return words[0]
        case "wrong_number":
            first = next(place for place, character in enumerate(target) if character.isdigit())
            return f"{target[:first]}{(int(target[first]) + rng.randrange(1, 9)) % 9 + 1}{target[first + 1 :]}"
    raise ValueError(f"{kind!r} is no kind of noise")


def _stuck(text: str, rng: random.Random) -> str:
    """Return the text with one word said some 40 times, as broken translation systems do."""
    words = text.split(" ")
    cut = rng.randrange(1, len(words))
    return " ".join([*words[:cut], *[words[cut - 1]] * rng.randrange(38, 43), *words[cut:]])


def _nearly(source: str, target: str, rng: random.Random) -> Pair:
    match rng.randrange(3):
        case 0:
            return source.upper(), target.upper()
        case 1:
            return source[:-1], target[:-1]
        case _:
            return f"{source[:-1]} !", f"{target[:-1]} !"


def write_corpus(out_dir: Path, pairs: int, seed: int) -> None:
    """Write the files of the module's docstring."""
    corpus = make_corpus(pairs, seed)
    rng = random.Random(seed + 1)  # the order of lines
    captions = [_line(*pair) for pair in corpus.train["caption"]] + corpus.noise["caption"]
    rng.shuffle(captions)
    middle = len(captions) // 2
    captions[middle:middle] = corpus.shifted
    rows = [b"\t".join(_line(*pair)) for pair in corpus.train["notice"]]
    rows += [b"\t".join(line) for line in corpus.noise["notice"]] + corpus.too_few_columns
    rng.shuffle(rows)
    out_dir.mkdir(parents=True, exist_ok=True)
    for side, language in enumerate(("en", "de")):
        _write_gz(out_dir / f"train.{language}.gz", b"".join(line[side] + b"\n" for line in captions))
        for split, heldout in (("dev", corpus.dev), ("test", corpus.test)):
            text = "".join(f"{pair[side]}\n" for pair in heldout)
            (out_dir / f"{split}.{language}").write_bytes(text.encode())
    numbered = [b"%d\t%s\n" % (number, row) for number, row in enumerate(rows, start=1)]
    (out_dir / "notices.tsv").write_bytes(b"id\ten\tde\n" + b"".join(numbered))
    made = {"seed": seed, "clean": {kind: len(train) for kind, train in corpus.train.items()}, "noise": corpus.counts}
    (out_dir / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _write_gz(path: Path, content: bytes) -> None:
    # Neither the name nor the time goes into the file: the same text gives the same bytes.
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        compressed.write(content)


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--pairs", type=int, default=8000, help="clean pairs of train (default: 8000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write_corpus(arguments.out_dir, arguments.pairs, arguments.seed)


if __name__ == "__main__":
    main()
