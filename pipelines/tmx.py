"""Translation memories (TMX): one unit after the other, in constant memory.

Read by expat, which needs no whole document. Nothing outside the file is ever fetched, and a file that declares
entities is refused: no translation memory needs one, and a few lines of them unfold to gigabytes.

Source: TMX 1.4b, https://www.gala-global.org/tmx-14b
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple
from xml.parsers import expat

from pipelines.errors import InputError

_BLOCK_BYTES = 2**18
# A property is a number or a name; a longer one is none that anybody asks for.
_PROPERTY_CHARACTERS = 1000
# Elements of a segment whose content is a native format's code, not text. That of `hi` and of unknown ones is text.
_CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})
_LANGUAGES = 20  # as many are named in an error


class Unit(NamedTuple):
    """A translation unit: the text of each side, None where it has none, and its properties by the order asked for."""

    src: str | None
    tgt: str | None
    properties: tuple[str | None, ...]


class Survey(NamedTuple):
    """How many units a file has, and for each side whether any of them has a segment in its language."""

    units: int
    has_src: bool
    has_tgt: bool
    languages: tuple[str, ...]  # in the order in which they occur, the first twenty


def fits(tag: str, wanted: str) -> bool:
    """Return whether a language tag is the wanted one or a variety of it (en-GB is en), whatever the case.

    Source: basic filtering, https://www.rfc-editor.org/rfc/rfc4647#section-3.3.1
    """
    tag, wanted = tag.replace("_", "-").lower(), wanted.replace("_", "-").lower()
    return tag == wanted or tag.startswith(f"{wanted}-")


def units(
    file: IO[bytes],
    path: str,
    wanted: tuple[str | None, str | None],
    properties: Sequence[str] = (),
    max_characters: int = 10_000_000,
) -> Iterator[Unit]:
    """Yield the units of an open TMX.

    A side is the first `tuv` whose language fits the wanted tag (None: that side is not looked for). Codes within a
    segment (bpt, ept, it, ph, ut, and what stands in them) are left out. A property is the first `prop` of that type in
    the unit. Of a longer segment the first `max_characters + 1` characters are kept.

    Raises InputError with line and column where the file is not well-formed, declares entities, or has an encoding
    that cannot be read.
    """
    reader = _Reader(path, wanted, properties, max_characters)
    while block := file.read(_BLOCK_BYTES):
        yield from reader.feed(block, last=False)
    yield from reader.feed(b"", last=True)


def survey(file: IO[bytes], path: str, wanted: tuple[str | None, str | None]) -> Survey:
    """Return what a whole TMX holds. Raises InputError as `units` does."""
    reader = _Reader(path, wanted, (), 0)
    found, has_src, has_tgt = 0, False, False
    while block := file.read(_BLOCK_BYTES):
        for unit in reader.feed(block, last=False):
            found, has_src, has_tgt = found + 1, has_src or unit.src is not None, has_tgt or unit.tgt is not None
    reader.feed(b"", last=True)
    return Survey(found, has_src, has_tgt, tuple(reader.languages))


class _Reader:
    """Bytes of a TMX -> the units that end in them."""

    def __init__(
        self, path: str, wanted: tuple[str | None, str | None], properties: Sequence[str], max_characters: int
    ) -> None:
        self._path, self._wanted, self._max_characters = path, wanted, max_characters
        self._places = {name: place for place, name in enumerate(properties)}
        self.languages: dict[str, None] = {}
        self._units: list[Unit] = []
        self._texts: list[str | None] = [None, None]
        self._properties: list[str | None] = [None] * len(properties)
        self._language = ""
        self._property: int | None = None  # the place of the property that is being read
        self._codes = 0  # how many elements of code are open
        self._text: list[str] | None = None  # of the segment or property that is being read
        self._characters = 0
        self._parser = self._new_parser()

    def _new_parser(self) -> expat.XMLParserType:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters_of
        parser.SkippedEntityHandler = self._skipped
        parser.EntityDeclHandler = self._declared
        return parser

    def feed(self, block: bytes, *, last: bool) -> list[Unit]:
        """Return the units that a block completes. Raises InputError."""
        self._units = []
        try:
            self._parser.Parse(block, last)
        except expat.ExpatError as error:
            raise InputError(
                f"not well-formed XML: {expat.ErrorString(error.code)}",
                where=f"{self._path}:{error.lineno}:{error.offset + 1}",
                remedy="Export the translation memory again, or mend it there; `xmllint --noout` shows all such places",
            ) from error
        except InputError:
            raise
        except (LookupError, ValueError) as error:
            # The encoding of the XML declaration is unknown to Python, or has characters of several bytes.
            raise InputError(
                f"its encoding cannot be read ({error})", where=self._path, remedy="Convert the file to UTF-8"
            ) from error
        return self._units

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tu":
            self._texts = [None, None]
            self._properties = [None] * len(self._places)
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or ""
            if len(self.languages) < _LANGUAGES:
                self.languages.setdefault(self._language)
        elif name == "seg":
            self._text, self._characters, self._codes = [], 0, 0
        elif name in _CODES:
            self._codes += 1
        elif name == "prop":
            place = self._places.get(attributes.get("type", ""))
            if place is not None and self._properties[place] is None:
                self._property, self._text, self._characters = place, [], 0

    def _end(self, name: str) -> None:
        if name == "seg" and self._text is not None:
            for side, wanted in enumerate(self._wanted):
                if wanted is not None and self._texts[side] is None and fits(self._language, wanted):
                    self._texts[side] = "".join(self._text)
            self._text = None
        elif name in _CODES:
            self._codes -= 1
        elif name == "prop" and self._property is not None:
            self._properties[self._property] = "".join(self._text or ())
            self._property, self._text = None, None
        elif name == "tu":
            self._units.append(Unit(self._texts[0], self._texts[1], tuple(self._properties)))

    def _characters_of(self, data: str) -> None:
        if self._text is None or self._codes:
            return
        left = (self._max_characters if self._property is None else _PROPERTY_CHARACTERS) + 1 - self._characters
        if left > 0:
            self._text.append(data[:left])
            self._characters += len(data)

    def _skipped(self, name: str, is_parameter: bool) -> None:
        """An entity of the document type, which is not read: its name stays, as in HTML, where it may be told from."""
        if not is_parameter:
            self._characters_of(f"&{name};")

    def _declared(self, name: str, *_: Any) -> None:
        raise InputError(
            f"the file declares the entity {name!r}",
            where=f"{self._path}:{self._parser.CurrentLineNumber}:{self._parser.CurrentColumnNumber + 1}",
            remedy="Write out what it stands for, and take the declaration out",
        )
