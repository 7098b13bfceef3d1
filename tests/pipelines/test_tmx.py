"""Translation memories: which texts a unit has, and which files are refused."""

from __future__ import annotations

import io
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import tmx
from pipelines.errors import InputError
from pipelines.tmx import Survey, Unit, fits, survey, units

# What XML can hold; expat turns \r into \n as the standard says.
XML_TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff", include_characters="\t\n")
)


def document(body: str, head: str = '<?xml version="1.0"?>') -> str:
    return f'{head}<tmx version="1.4"><header srclang="en"/><body>{body}</body></tmx>'


def unit(src: str, tgt: str) -> str:
    return f'<tu><tuv xml:lang="en"><seg>{src}</seg></tuv><tuv xml:lang="de"><seg>{tgt}</seg></tuv></tu>'


def read(text: str | bytes, *properties: str, wanted: tuple[str | None, str | None] = ("en", "de")) -> list[Unit]:
    data = text.encode() if isinstance(text, str) else text
    return list(units(io.BytesIO(data), "a.tmx", wanted, properties))


def texts(body: str, wanted: tuple[str | None, str | None] = ("en", "de")) -> list[tuple[str | None, str | None]]:
    return [(found.src, found.tgt) for found in read(document(body), wanted=wanted)]


def refusal(text: str | bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        read(text)
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(InputError):
        survey(io.BytesIO(data), "a.tmx", ("en", "de"))
    return caught.value


# --- Text ------------------------------------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(XML_TEXT, XML_TEXT), max_size=5), block=st.integers(1, 200))
def test_texts_are_as_they_were_written_whatever_the_blocks(pairs: list[tuple[str, str]], block: int) -> None:
    body = "".join(unit(escape(src), escape(tgt)) for src, tgt in pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tmx, "_BLOCK_BYTES", block)
        assert texts(body) == pairs


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "iso-8859-1", "windows-1252"])
def test_the_encoding_is_the_files_own(encoding: str) -> None:
    declared = "utf-16" if encoding.startswith("utf-16") else "utf-8" if "utf-8" in encoding else encoding
    text = document(unit("Grüße", "é"), f'<?xml version="1.0" encoding="{declared}"?>')
    assert read(text.encode(encoding)) == [Unit("Grüße", "é", ())]


@pytest.mark.parametrize(
    ("segment", "text"),
    [
        ("a <hi>b</hi> c", "a b c"),
        ('a<bpt i="1">&lt;b></bpt>b<ept i="1">&lt;/b></ept>c', "abc"),
        ("a <ph>{1}</ph>b <it pos='begin'>x</it><ut>y</ut>c", "a b c"),
        ("a<ph>x<sub>a footnote</sub>y</ph>b", "ab"),
        ("a <hi>b<ph>x</ph> <hi>c</hi></hi> d", "a b c d"),
        ("a <unknown>b</unknown>", "a b"),
        ("&lt;b&gt; &amp; &#228;", "<b> & ä"),
        ("<![CDATA[a < b]]><!-- no text --><?no text?>", "a < b"),
        ("a\u2028b\nc\r\nd", "a\u2028b\nc\nd"),
        ("", ""),
    ],
)
def test_codes_are_left_out_and_text_stays(segment: str, text: str) -> None:
    assert texts(unit(segment, "x")) == [(text, "x")]


def test_an_entity_of_the_document_type_keeps_its_name() -> None:
    head = '<!DOCTYPE tmx SYSTEM "http://127.0.0.1:9/tmx14.dtd">'
    assert read(document(unit("a&nbsp;b", "x"), head)) == [Unit("a&nbsp;b", "x", ())]


def test_of_a_long_segment_the_first_characters_are_kept() -> None:
    data = document(unit("a" * 1000, "b" * 10)).encode()
    found = units(io.BytesIO(data), "a.tmx", ("en", "de"), max_characters=10)
    assert list(found) == [Unit("a" * 11, "b" * 10, ())]


# --- Sides -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "wanted", "is_it"),
    [
        ("en", "en", True), ("EN-us", "en", True), ("en_GB", "en", True), ("en-GB-oxendict", "en-gb", True),
        ("eng", "en", False), ("en", "en-GB", False), ("", "en", False), ("zh-Hant-TW", "zh-Hant", True),
    ],
)  # fmt: skip
def test_a_tag_fits_the_wanted_one_and_its_varieties(tag: str, wanted: str, is_it: bool) -> None:
    assert fits(tag, wanted) is is_it


def test_a_side_is_the_first_variant_in_its_language() -> None:
    tuv = '<tuv {}="{}"><seg>{}</seg></tuv>'
    variants = [("xml:lang", "fr", "c"), ("lang", "DE-at", "a"), ("xml:lang", "de", "b"), ("xml:lang", "en-US", "d")]
    body = "<tu>" + "".join(tuv.format(*variant) for variant in variants) + "</tu>"
    assert texts(body) == [("d", "a")]
    assert texts(body, wanted=("fr", "de-AT")) == [("c", "a")]
    assert texts(body, wanted=(None, "fr")) == [(None, "c")]


def test_a_unit_has_what_it_has() -> None:
    body = '<tu/><tu><tuv xml:lang="en"><seg>a</seg></tuv></tu><tu><tuv xml:lang="de"/></tu>' + unit("b", "")
    assert texts(body) == [(None, None), ("a", None), (None, None), ("b", "")]


def test_properties_are_the_first_of_their_type() -> None:
    prop = '<prop type="{}">{}</prop>'
    one = f'<tu>{prop.format("score", 0.5)}{prop.format("score", 1)}<tuv xml:lang="en">{prop.format("id", "x&amp;y")}'
    body = f"{one}<seg>a</seg></tuv></tu>{unit('b', 'c')}"
    assert read(document(body), "id", "score", "none") == [
        Unit("a", None, ("x&y", "0.5", None)),
        Unit("b", "c", (None, None, None)),
    ]


def test_a_survey_tells_units_and_languages() -> None:
    body = '<tu><tuv xml:lang="en-GB"><seg>a</seg></tuv><tuv xml:lang="fr"><seg>b</seg></tuv></tu><tu/>'
    found = survey(io.BytesIO(document(body).encode()), "a.tmx", ("en", "de"))
    assert found == Survey(2, True, False, ("en-GB", "fr"))


# --- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        (document("<tu>\n</tuv>"), "mismatched tag", "2:3"),
        (document(unit("a", "b"))[:-13], "no element found", "1:152"),
        (document(unit("a\x01", "b")), "not well-formed (invalid token)", "1:98"),
        (document(unit("a&#31;", "b")), "reference to invalid character number", "1:98"),
        (document(unit("a&nbsp;", "b")), "undefined entity", "1:98"),
        ("", "no element found", "1:1"),
        ("no XML", "syntax error", "1:1"),
    ],
)
def test_what_is_not_well_formed_is_refused_with_its_place(text: str, what: str, place: str) -> None:
    error = refusal(text)
    assert (error.what, error.where) == (f"not well-formed XML: {what}", f"a.tmx:{place}")


def test_bytes_that_are_no_utf8_are_refused_with_their_place() -> None:
    assert refusal(document(unit("a\n", "b")).encode() + b"\xff").where == "a.tmx:2:68"


@pytest.mark.parametrize("encoding", ["gb2312", "unheard-of"])
def test_an_encoding_that_expat_cannot_read_is_refused(encoding: str) -> None:
    error = refusal(document("", f'<?xml version="1.0" encoding="{encoding}"?>'))
    assert error.what.startswith("its encoding cannot be read")
    assert error.remedy == "Convert the file to UTF-8"


@pytest.mark.parametrize(
    "declaration",
    [
        '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/hostname">',
        '<!ENTITY % a SYSTEM "http://127.0.0.1:9/a.dtd"> %a;',
    ],
)
def test_declared_entities_are_refused(declaration: str) -> None:
    error = refusal(document(unit("&a;", "b"), f"<!DOCTYPE tmx [\n{declaration}]>"))
    assert error.what == "the file declares the entity 'a'"
    assert error.where.startswith("a.tmx:2:")
