"""Codes of languages: what the labels of language identification models say in the recipe's codes."""

from __future__ import annotations

from functools import cache

# ISO 639-1 and the codes of ISO 639-3 that models use for it: that of a macrolanguage, and that of its standard.
_CODES = """
af:afr am:amh ar:ara,arb as:asm az:aze,azj ba:bak be:bel bg:bul bn:ben bo:bod br:bre bs:bos ca:cat cs:ces cv:chv
cy:cym da:dan de:deu dv:div dz:dzo el:ell en:eng eo:epo es:spa et:est,ekk eu:eus fa:fas,pes fi:fin fo:fao fr:fra
fy:fry ga:gle gd:gla gl:glg gn:grn,gug gu:guj gv:glv ha:hau he:heb hi:hin hr:hrv ht:hat hu:hun hy:hye id:ind ig:ibo
is:isl it:ita ja:jpn jv:jav ka:kat kk:kaz km:khm kn:kan ko:kor ku:kur,kmr kv:kom kw:cor ky:kir la:lat lb:ltz ln:lin
lo:lao lt:lit lv:lav,lvs mg:mlg,plt mi:mri mk:mkd ml:mal mn:mon,khk mr:mar ms:msa,zsm mt:mlt my:mya ne:nep,npi nl:nld
nn:nno no:nor,nob ny:nya oc:oci om:orm,gaz or:ori,ory os:oss pa:pan pl:pol ps:pus,pbt pt:por qu:que,quy rm:roh rn:run
ro:ron ru:rus rw:kin sa:san sc:srd sd:snd sh:hbs si:sin sk:slk sl:slv sm:smo sn:sna so:som sq:sqi,als sr:srp ss:ssw
st:sot su:sun sv:swe sw:swa,swh ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat
ug:uig uk:ukr ur:urd uz:uzb,uzn vi:vie wa:wln wo:wol xh:xho yi:yid,ydd yo:yor zh:zho,cmn zu:zul
"""
_ALIASES = {"nb": "no", "fil": "tl", "iw": "he", "in": "id"}


def canonical(code: str) -> str:
    """Return the two-letter code of a language where there is one, else the code: `deu` and `de` are `de`."""
    return _two_letters().get(code, _ALIASES.get(code, code))


def script_of_tag(tag: str) -> str | None:
    """Return the script that a tag names behind a hyphen or an underscore (`zh-Hant`, `zho_Hant`), else None."""
    rest = tag.replace("_", "-").split("-")[1:]
    return next((part.capitalize() for part in rest if len(part) == 4), None)


@cache
def _two_letters() -> dict[str, str]:
    pairs = (entry.split(":") for entry in _CODES.split())
    return {three: two for two, threes in pairs for three in threes.split(",")}
