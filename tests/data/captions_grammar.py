"""The sentences of the demo corpus: captions and notices in English and German, of words drawn from the lexicon."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import date, timedelta

from captions_words import (
    CALM_MANNERS,
    CITIES,
    HABITS,
    MANNERS,
    MONTHS,
    NOW,
    NUMBERS,
    ORDINALS,
    PAST,
    WEEKDAYS,
    Adjective,
    Case,
    Clause,
    Couple,
    Noun,
    NounPhrase,
    Pair,
    Tense,
    Verb,
    prepositional,
    read_lexicon,
)

_SUBORDINATE = {"because": "weil", "when": "wenn", "while": "während", "although": "obwohl"}
_SAYING = {"says": "sagt", "knows": "weiß", "believes": "glaubt", "sees": "sieht"}
_WEATHER = {
    "is raining": ("regnet", ""),
    "is snowing": ("schneit", ""),
    "is cold": ("ist", "kalt"),
    "is late": ("ist", "spät"),
}
_NEAR = {"in front of": "vor", "behind": "hinter", "next to": "neben"}
_TURNING = {"after": "nach", "before": "vor", "at": "an", "behind": "hinter"}
_SIDES = {"left": "links", "right": "rechts"}
_WAYS: dict[str, tuple[str, Case]] = {
    "to": ("zu", "dat"),
    "from": ("von", "dat"),
    "into": ("in", "acc"),
    "through": ("durch", "acc"),
    "across": ("über", "acc"),
    "around": ("um", "acc"),
}
_ACTIVITIES = {  # with the classes of places
    "smoking": ("Rauchen", "BR"),
    "eating": ("Essen", "BR"),
    "photography": ("Fotografieren", "BR"),
    "parking": ("Parken", "N"),
    "camping": ("Zelten", "N"),
    "cycling": ("Radfahren", "N"),
}
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
_OPPOSITES = ({"old", "new"}, {"old", "modern"}, {"big", "small"}, {"heavy", "light"}, {"expensive", "cheap"})
_POSSESSIVES = {"m": "his", "f": "her"}

_WEAR = Verb("P", ("wear", "wears", "wearing", "wore", "worn"), "", "tragen", "trägt", "getragen", False, "clothes")
_TRAIN_TICKET = Noun("T", "ticket", "tickets", "f", "Fahrkarte", "Fahrkarte", "Fahrkarten", frozenset(), None)
_ENTRANCE_TICKET = Noun(
    "T", "ticket", "tickets", "f", "Eintrittskarte", "Eintrittskarte", "Eintrittskarten", frozenset(), None
)
_NEAREST = Adjective("B", "nearest", "nächst", "nächst", "", "")
_NEXT = Adjective("V", "next", "nächst", "nächst", "", "")


def sentence(en: str, de: str, end: str = ".") -> Pair:
    """Return both sides with a capital first letter and an end."""
    return en[0].upper() + en[1:] + end, de[0].upper() + de[1:] + end


class Grammar:
    """Makes sentence pairs; every choice is drawn from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.words = read_lexicon()
        self.landmarks = self.words.used_as("landmark")
        self.opening = self.words.used_as("opens")
        self.places = [noun for noun in self.words.nouns if noun.place]

    # Phrases

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.rng.random() < probability

    def pair(self, table: dict[str, str]) -> Pair:
        """Return one entry of a table of English and German."""
        return self.rng.choice(list(table.items()))

    def adjective(self, noun: Noun, probability: float) -> Adjective | None:
        """Return an adjective that goes with a noun, or none."""
        fitting = [adjective for adjective in self.words.adjectives if noun.kind in adjective.kinds]
        return self.rng.choice(fitting) if fitting and self.chance(probability) else None

    def phrase(
        self, nouns: Sequence[Noun], determiners: Sequence[str], adjective: float = 0.35, plural: float = 0.0
    ) -> NounPhrase:
        """Return a phrase of one of the nouns; an indefinite plural has a number, or no determiner."""
        noun, determiner = self.rng.choice(nouns), self.rng.choice(determiners)
        is_plural = self.chance(plural)
        if is_plural and determiner == "a":
            determiner = self.rng.choice(["", *NUMBERS])
        return NounPhrase(noun, determiner, self.adjective(noun, adjective), is_plural)

    def the(self, nouns: Sequence[Noun], adjective: float = 0.25) -> NounPhrase:
        """Return a definite singular phrase."""
        return self.phrase(nouns, ["the"], adjective)

    def subject(self, kinds: str, determiners: Sequence[str] = ("a", "a", "the")) -> NounPhrase:
        """Return who does something; a person may wear something, or have an animal."""
        nouns = self.words.used_as("road") if kinds == "V" else self.words.of_kind(kinds)
        phrase = self.phrase(nouns, determiners, plural=0.25)
        if phrase.noun.kind != "P" or phrase.plural or not self.chance(0.2):
            return phrase
        if self.chance(0.6):
            clothes = self.phrase(self.words.of_kind("C"), ["a"], adjective=0.9)
            after = (f"in {clothes.en()}", f"{'mit' if 'head' in clothes.noun.uses else 'in'} {clothes.de('dat')}")
        else:
            carried = [noun for noun in self.words.used_as("carry") if "own" in noun.uses]
            company = self.phrase([*carried, self.words.noun("dog"), self.words.noun("camera")], ["a"], adjective=0.6)
            after = (f"with {company.en()}", f"mit {company.de('dat')}")
        return NounPhrase(phrase.noun, phrase.determiner, phrase.adjective, after=after)

    def place(self, kinds: str = "BNR") -> Pair:
        """Return where something is: in, on, at a place of some classes, or near a landmark, or on the floor."""
        if "R" in kinds and self.chance(0.03):
            return "on the floor", "auf dem Boden"
        places = [noun for noun in self.places if noun.kind in kinds]
        if not places or ("N" in kinds and self.chance(0.25)):
            return self.near()
        phrase = self.phrase(places, ["the"] * 5 + ["a"], adjective=0.25)
        assert phrase.noun.place is not None
        en, de = phrase.noun.place
        return f"{en} {phrase.en()}", prepositional(de, phrase, "dat")

    def near(self) -> Pair:
        """Return a place before, behind or next to a landmark."""
        en, de = self.pair(_NEAR)
        phrase = self.the(self.landmarks)
        return f"{en} {phrase.en()}", prepositional(de, phrase, "dat")

    def way(self, use: str) -> Pair:
        """Return where something goes; `use` is a key of _WAYS, or `city`."""
        if use == "city":
            en, de = self.pair(CITIES)
            return f"to {en}", f"nach {de}"
        phrase = self.the(self.words.used_as("to" if use == "from" else use))
        preposition, case = _WAYS[use]
        return f"{use} {phrase.en()}", prepositional(preposition, phrase, case)

    def thing(self, verb: Verb, subject: NounPhrase, determiners: Sequence[str] = ("a", "the")) -> NounPhrase:
        """Return what a verb is done to; what one owns or wears is often one's own."""
        phrase = self.phrase(self.words.used_as(verb.objects), determiners, plural=0.2)
        own = "their" if subject.plural else _POSSESSIVES.get(subject.noun.gender)
        if own and verb.objects in ("own", "dress", "head") and subject.noun.kind == "P" and self.chance(0.6):
            return NounPhrase(phrase.noun, own, phrase.adjective, plural=subject.plural and verb.objects != "own")
        return phrase

    def clock(self) -> Pair:
        """Return a time of day."""
        time = f"{self.rng.randrange(7, 23)}:{self.rng.choice(['00', '15', '30', '45', '10', '20', '40', '50'])}"
        return f"at {time}", f"um {time} Uhr"

    def day(self) -> date:
        """Return a date."""
        return date(2023, 1, 1) + timedelta(days=self.rng.randrange(1460))

    def euros(self, low: int, high: int) -> Pair:
        """Return a price of `low` euros or more, and less than `high`."""
        price = f"{self.rng.randrange(low, high)}.{self.rng.choice(['00', '20', '50', '80', '90', '95'])}"
        return f"€ {price}", f"{price.replace('.', ',')} €"

    def others(self, nouns: Sequence[Noun], *taken: NounPhrase) -> list[Noun]:
        """Return the nouns that no phrase has taken."""
        return [noun for noun in nouns if noun not in [phrase.noun for phrase in taken]]

    # Clauses

    def stay(self, subject: NounPhrase, tense: Tense, time: Pair | None = None) -> Clause:
        """Return a clause of someone who does something somewhere."""
        verb = self.rng.choice([verb for verb in self.words.intransitive if subject.noun.kind in verb.kinds])
        manner = self.pair(CALM_MANNERS) if self.chance(0.08) and subject.noun.kind != "V" else None
        # A vehicle stops near something, an animal stays in the open.
        place = self.place(verb.objects if subject.noun.kind == "P" or verb.objects == "-" else "N")
        return Clause(subject, verb, tense, manner=manner, place=place, time=time)

    def deed(self, subject: NounPhrase, tense: Tense, time: Pair | None = None, place: float = 0.5) -> Clause:
        """Return a clause of someone who does something to a thing."""
        verb = self.rng.choice([verb for verb in self.words.transitive if subject.noun.kind in verb.kinds])
        hurried = verb.objects not in ("sight", "goods", "own")
        manner = self.pair(MANNERS) if hurried and self.chance(0.12) else None
        where = None
        if self.chance(place) and verb.objects not in ("tidy", "sight"):
            where = self.place("N" if subject.noun.kind == "A" else "BNR")
        return Clause(subject, verb, tense, thing=self.thing(verb, subject), manner=manner, place=where, time=time)

    def move(self, subject: NounPhrase, tense: Tense, time: Pair | None = None) -> Clause:
        """Return a clause of someone who goes somewhere."""
        verb = self.rng.choice([verb for verb in self.words.motion if subject.noun.kind in verb.kinds])
        if verb.objects == "from":
            return Clause(subject, verb, tense, direction=self.way("from"), time=time)
        uses = [use for use in _WAYS if use != "from"]
        if verb.plural == "fahren":
            uses = ["to", "across", "through"] if subject.noun.kind == "V" else ["to", "across", "through", "city"]
        use = self.rng.choice(uses)
        manner = ("", "mit dem Fahrrad") if verb.objects == "bicycle" else None
        return Clause(subject, verb, tense, manner=manner, direction=self.way(use), time=time)

    def clause(
        self, tense: Tense, determiners: Sequence[str], time: Pair | None = None, kinds: str = "PPPPPA"
    ) -> Clause:
        """Return a clause of any of the three."""
        subject = self.subject(self.rng.choice(kinds), determiners)
        # An animal has one verb that takes an object, a vehicle none.
        draw = self.rng.random() * {"P": 1.0, "A": 0.6, "V": 0.5}[subject.noun.kind]
        if draw < 0.3:
            return self.stay(subject, tense, time)
        if draw < 0.5:
            return self.move(subject, tense, time)
        return self.deed(subject, tense, time)

    def state(self) -> tuple[str, str, str]:
        """Return `the dog is hungry`, its German subject with the rest, and the finite verb."""
        if self.chance(0.2):
            return self.weather()
        phrase = self.phrase(self.words.of_kind("PATCDVR"), ["the"], adjective=0.0, plural=0.2)
        adjective = self.adjective(phrase.noun, 1.0)
        assert adjective is not None
        be = ("are", "sind") if phrase.plural else ("is", "ist")
        return f"{phrase.en()} {be[0]} {adjective.en}", f"{phrase.de('nom')} {adjective.de}", be[1]

    def weather(self) -> tuple[str, str, str]:
        """Return `it is raining`, in the form of `state`."""
        en, (finite, rest) = self.rng.choice(list(_WEATHER.items()))
        return f"it {en}", f"es {rest}".strip(), finite

    # Captions

    def caption_seen(self) -> Pair:
        """A young man in a red coat is reading a book in the park."""
        time = self.pair(NOW) if self.chance(0.1) else None
        clause = self.clause("progressive", ("a", "a", "a", "the"), time, "PPPPPPAAV")
        return sentence(clause.en(), clause.de())

    def caption_couple(self) -> Pair:
        """A man and a woman are waiting at the station."""
        people = self.words.of_kind("P")
        first = self.phrase(people, ["a"], adjective=0.2)
        second = self.phrase(self.others(people, first), ["a"], adjective=0.2)
        made = self.rng.choice((self.stay, self.move))(first, "progressive")
        clause = Clause(
            Couple(first, second), made.verb, made.tense, None, None, made.manner, made.place, made.direction
        )
        return sentence(clause.en(), clause.de())

    def caption_habit(self) -> Pair:
        """In the evening the woman feeds the cats."""
        time = self.pair(HABITS) if self.chance(0.7) else self.on_weekday()
        clause, first = self.clause("present", ("the",), time), self.chance(0.5)
        return sentence(clause.en(time_first=first), clause.de(time_first=first))

    def caption_past(self) -> Pair:
        """Yesterday the boy bought a green umbrella. The boy has bought a green umbrella."""
        if self.chance(0.4):
            clause = self.clause("perfect", ("the", "the", "a"))
            return sentence(clause.en(), clause.de())
        clause, first = self.clause("past", ("the", "the", "a"), self.pair(PAST)), self.chance(0.5)
        return sentence(clause.en(time_first=first), clause.de(time_first=first))

    def caption_modal(self) -> Pair:
        """The children want to play in the garden today."""
        time = self.pair({"today": "heute", "tomorrow": "morgen"}) if self.chance(0.4) else None
        clause = self.clause(self.rng.choice(("can", "must", "may", "want")), ("the",), time, "P")
        first = time is not None and self.chance(0.4)
        return sentence(clause.en(time_first=first), clause.de(time_first=first))

    def caption_subordinate(self) -> Pair:
        """The woman is sitting in the kitchen because the dog is tired. Or the other way round."""
        en, de = self.pair(_SUBORDINATE)
        main = self.clause("progressive", ("the",), kinds="P")
        if self.chance(0.5):
            en_state, de_state, finite = self.state() if en in ("because", "although") else self.weather()
            en, de = f"{en} {en_state}", f"{de} {de_state} {finite}"
        else:
            inner = self.clause("progressive", ("the",), kinds="PA")
            while inner.subject.en() == main.subject.en():
                inner = self.clause("progressive", ("the",), kinds="PA")
            en, de = f"{en} {inner.en()}", f"{de} {inner.de_final()}"
        if self.chance(0.4):
            return sentence(f"{en}, {main.en()}", f"{de}, {main.de_inverted()}")
        return sentence(f"{main.en()} {en}", f"{main.de()}, {de}")

    def caption_said(self) -> Pair:
        """The teacher says that the library is old."""
        person = self.the(self.words.of_kind("P"))
        en, de = self.pair(_SAYING)
        if self.chance(0.4):
            en_state, de_state, finite = self.state()
            return sentence(f"{person.en()} {en} that {en_state}", f"{person.de('nom')} {de}, dass {de_state} {finite}")
        inner = self.clause(self.rng.choice(("progressive", "perfect", "can", "must")), ("the",))
        return sentence(f"{person.en()} {en} that {inner.en()}", f"{person.de('nom')} {de}, dass {inner.de_final()}")

    def caption_relative(self) -> Pair:
        """The man who is wearing a green hat is waiting at the station."""
        person = self.phrase(self.words.of_kind("P"), ["the"], adjective=0.1, plural=0.15)
        if self.chance(0.5):
            clothes = self.phrase(self.words.of_kind("C"), ["a"], adjective=0.8, plural=1.0 if person.plural else 0.0)
            clothes = NounPhrase(clothes.noun, "" if person.plural else "a", clothes.adjective, person.plural)
            inner = Clause(person, _WEAR, "progressive", thing=clothes)
        else:
            inner = self.deed(person, "progressive", place=0.0)
        main = self.rng.choice((self.stay, self.move))(person, "progressive")
        en = f"{person.en()} {inner.en(subject='who')} {main.en(subject='')[1:]}"
        finite_and_rest = main.de()[len(person.de("nom")) + 1 :]
        return sentence(en, f"{person.de('nom')}, {inner.de_final(person.relative())}, {finite_and_rest}")

    def caption_there(self) -> Pair:
        """There is a bakery next to the school. There is no bench in the park."""
        thing = self.phrase(self.words.of_kind("BND"), ["a", "a", "no"], plural=0.0)
        where = self.place("R") if thing.noun.kind == "D" else self.near()
        return sentence(f"there is {thing.en()} {where[0]}", f"{where[1]} gibt es {thing.de('acc')}")

    def caption_it(self) -> Pair:
        """The lamp is old, but it is beautiful."""
        thing = self.phrase(self.words.of_kind("CDTVB"), ["the", "this"], adjective=0.0)
        judging = [word for word in self.words.adjectives if word.en not in _COLOURS]
        fitting = [word for word in judging if thing.noun.kind in word.kinds]
        one, other = self.rng.sample(fitting, 2)
        while {one.en, other.en} in _OPPOSITES:
            one, other = self.rng.sample(fitting, 2)
        very = ("very ", "sehr ") if self.chance(0.4) else ("", "")
        en = f"{thing.en()} is {one.en}, but it is {very[0]}{other.en}"
        return sentence(en, f"{thing.de('nom')} ist {one.de}, aber {thing.pronoun()} ist {very[1]}{other.de}")

    def caption_compared(self) -> Pair:
        """The church is older than the town hall. The bag is as heavy as the suitcase."""
        one = self.phrase(self.words.of_kind("CDTVBNR"), ["the", "this"], adjective=0.0)
        other = self.the(self.others(self.words.of_kind(one.noun.kind), one), 0.0)
        comparable = [word for word in self.words.adjectives if one.noun.kind in word.kinds and word.de_more]
        adjective = self.rng.choice(comparable)
        if self.chance(0.6):
            en, de = f"{adjective.en_more} than", f"{adjective.de_more} als"
        else:
            en, de = f"as {adjective.en} as", f"so {adjective.de} wie"
        return sentence(f"{one.en()} is {en} {other.en()}", f"{one.de('nom')} ist {de} {other.de('nom')}")

    def caption_giving(self) -> Pair:
        """The man gives the child an apple. The boy is helping the old woman in the garden."""
        subject = self.subject("P", ("the", "a"))
        receiver = self.phrase(self.words.of_kind("P"), ["the", "the", "a"])
        tense: Tense = self.rng.choice(("progressive", "present", "perfect"))
        if self.chance(0.3):
            verb, place = self.rng.choice(self.words.helping), self.place() if self.chance(0.5) else None
            clause = Clause(subject, verb, tense, receiver, place=place)
        else:
            verb = self.rng.choice(self.words.giving)
            clause = Clause(subject, verb, tense, receiver, self.thing(verb, subject))
        return sentence(clause.en(), clause.de())

    def caption_purpose(self) -> Pair:
        """The woman is going to the market to buy apples."""
        subject = self.subject("P", ("the",))
        verb = self.rng.choice([verb for verb in self.words.transitive if verb.objects in ("goods", "pickup", "sight")])
        thing = self.thing(verb, subject)
        main = self.move(subject, "progressive")
        de = f"{main.de()}, um {thing.de('acc')} {verb.infinitive_with_zu}"
        return sentence(f"{main.en()} to {verb.en[0]} {thing.en()}", de)

    def caption_question(self) -> Pair:
        """Is the woman selling the bicycle? Where are the children playing?"""
        made = self.clause("progressive", ("the",))
        be, subject = "are" if made.subject.plural else "is", made.subject.en()
        if made.place and made.thing is None:
            clause = Clause(made.subject, made.verb, made.tense)
            return sentence(f"where {be} {subject} {made.verb.en[2]}", f"wo {clause.de_inverted()}", "?")
        rest = made.en().removeprefix(f"{subject} {be} ")
        return sentence(f"{be} {subject} {rest}", made.de_inverted(), "?")

    # Notices

    def on_weekday(self) -> Pair:
        """Return `on Monday` or `on Mondays`."""
        en, de = self.pair(WEEKDAYS)
        return (f"on {en}", f"am {de}") if self.chance(0.5) else (f"on {en}s", f"{de.lower()}s")

    def on_date(self) -> Pair:
        """Return a date, with or without the day of the week and the year."""
        day = self.day()
        en, de = self.dated(day, year=self.chance(0.5))
        if not self.chance(0.4):
            return f"on {en}", f"am {de}"
        en_weekday, de_weekday = list(WEEKDAYS.items())[day.weekday()]
        return f"on {en_weekday}, {en}", f"am {de_weekday}, dem {de}"

    def dated(self, day: date, *, year: bool) -> Pair:
        """Return `3 March 2024`."""
        en, de = list(MONTHS.items())[day.month - 1]
        end = f" {day.year}" if year else ""
        return f"{day.day} {en}{end}", f"{day.day}. {de}{end}"

    def notice_event(self) -> Pair:
        """The concert begins on Saturday, 3 March 2024 in the town hall."""
        event = self.the(self.words.used_as("event"), 0.3)
        when = self.on_date() if self.chance(0.6) else self.clock()
        en, de, prefix = self.rng.choice(
            (("begins", "beginnt", ""), ("starts", "fängt", " an"), ("takes place", "findet", " statt"))
        )
        where = self.place_of_event() if self.chance(0.6) else ("", "")
        # A weekday with its date is set off by commas on both sides.
        en_comma, de_comma = ("," if ", dem" in when[1] and more else "" for more in (where[0], where[1] + prefix))
        en = f"{event.en()} {en} {when[0]}{en_comma}{where[0]}"
        return sentence(en, f"{event.de('nom')} {de} {when[1]}{de_comma}{where[1]}{prefix}")

    def place_of_event(self) -> Pair:
        """Return ` in the town hall`, with the space before it."""
        phrase = self.the([noun for noun in self.opening if noun.place], 0.15)
        return f" in {phrase.en()}", " " + prepositional("in", phrase, "dat")

    def notice_closed(self) -> Pair:
        """The library is closed from 3 March to 5 April. The museum is open from 9:00 to 18:00 on Mondays."""
        where = self.the(self.opening, 0.15)
        if self.chance(0.5):
            first = self.day()
            last = first + timedelta(days=self.rng.randrange(2, 60))
            (en_first, de_first), (en_last, de_last) = self.dated(first, year=False), self.dated(last, year=False)
            en, de = f"is closed from {en_first} to {en_last}", f"ist vom {de_first} bis zum {de_last} geschlossen"
        else:
            opens, closes = self.rng.randrange(7, 12), self.rng.randrange(15, 23)
            en_day, de_day = self.rng.choice([("daily", "täglich"), self.weekdays(), self.weekdays()])
            minutes = self.rng.choice(("00", "30"))
            en = f"is open {en_day} from {opens}:{minutes} to {closes}:{minutes}"
            de = f"ist {de_day} von {opens}:{minutes} bis {closes}:{minutes} Uhr geöffnet"
        return sentence(f"{where.en()} {en}", f"{where.de('nom')} {de}")

    def weekdays(self) -> Pair:
        """Return `on Mondays` or `from Monday to Friday`."""
        first, last = sorted(self.rng.sample(range(7), 2))
        days = list(WEEKDAYS.items())
        if self.chance(0.5):
            return f"on {days[first][0]}s", f"{days[first][1].lower()}s"
        return f"from {days[first][0]} to {days[last][0]}", f"von {days[first][1]} bis {days[last][1]}"

    def notice_price(self) -> Pair:
        """The red umbrella costs € 12.90. Two cups cost € 7.50 instead of € 9.00."""
        thing = self.phrase(self.words.used_as("goods"), ["the", "a", "this"], adjective=0.5, plural=0.25)
        low, middle, high = {"F": (1, 4, 9), "D": (20, 80, 200), "V": (90, 300, 900)}.get(thing.noun.kind, (4, 30, 70))
        price = self.euros(low, middle)
        en, de = ("cost", "kosten") if thing.plural else ("costs", "kostet")
        en, de = f"{thing.en()} {en} {price[0]}", f"{thing.de('nom')} {de} {price[1]}"
        if self.chance(0.3):
            before = self.euros(middle, high)
            return sentence(f"{en} instead of {before[0]}", f"{de} statt {before[1]}")
        return sentence(en, de)

    def notice_ticket(self) -> Pair:
        """A ticket to Hamburg costs € 23.50. A ticket for the museum costs € 8.00. Adults pay € 8.00."""
        price, draw = self.euros(8, 40), self.rng.random()
        if draw < 0.4:
            city = self.pair(CITIES)
            ticket = NounPhrase(_TRAIN_TICKET, "a", after=(f"to {city[0]}", f"nach {city[1]}"))
        elif draw < 0.8:
            where = self.the([*self.opening, *self.words.used_as("event")], 0.1)
            ticket = NounPhrase(_ENTRANCE_TICKET, "a", after=(f"for {where.en()}", f"für {where.de('acc')}"))
        else:
            less = self.euros(2, 8)
            en = f"adults pay {price[0]}, children pay {less[0]}"
            return sentence(en, f"Erwachsene zahlen {price[1]}, Kinder zahlen {less[1]}")
        if self.chance(0.35):
            return sentence(f"I would like to buy {ticket.en()}", f"ich möchte {ticket.de('acc')} kaufen")
        return sentence(f"{ticket.en()} costs {price[0]}", f"{ticket.de('nom')} kostet {price[1]}")

    def notice_line(self) -> Pair:
        """The train to Hamburg departs at 8:15 from platform 4. The bus is 20 minutes late."""
        line = self.the([self.words.noun("train"), self.words.noun("bus")], 0.0)
        (en_city, de_city), (en_time, de_time) = self.pair(CITIES), self.clock()
        draw = self.rng.random()
        if draw < 0.35:
            en, de = f"{line.en()} to {en_city} departs {en_time}", f"{line.de('nom')} nach {de_city} fährt {de_time}"
            if line.noun.en == "train":
                platform = self.rng.randrange(1, 20)
                en, de = f"{en} from platform {platform}", f"{de} von Gleis {platform}"
            return sentence(en, f"{de} ab")
        if draw < 0.6:
            en = f"{line.en()} arrives in {en_city} {en_time}"
            return sentence(en, f"{line.de('nom')} kommt {de_time} in {de_city} an")
        if draw < 0.8:
            minutes = self.rng.randrange(5, 95, 5)
            en = f"{line.en()} from {en_city} is {minutes} minutes late today"
            return sentence(en, f"{line.de('nom')} aus {de_city} hat heute {minutes} Minuten Verspätung")
        day, goal = self.pair(WEEKDAYS), self.way("to")
        other = self.the(self.words.used_as("line"), 0.0)
        en = f"{other.en()} {goal[0]} does not run on {day[0]}s"
        return sentence(en, f"{other.de('nom')} {goal[1]} fährt {day[1].lower()}s nicht")

    def notice_request(self) -> Pair:
        """Please switch off the lamp before you leave the office. Please do not feed the ducks."""
        at_leaving = ("openable", "switch", "tidy", "dishes", "pickup")
        uses = (*at_leaving, "feed", "dress", "carry", "read")
        verb = self.rng.choice([verb for verb in self.words.transitive if verb.objects in uses])
        thing = self.phrase(self.words.used_as(verb.objects), ["the", "the", "this", "your"], plural=0.15)
        prefix = f" {verb.prefix}" if verb.prefix else ""
        if self.chance(0.3) or verb.objects == "feed":
            en = f"please do not {verb.en[0]} {thing.en()}"
            return sentence(en, f"bitte {verb.plural} Sie {thing.de('acc')} nicht{prefix}")
        en, de = f"please {verb.en[0]} {thing.en()}", f"bitte {verb.plural} Sie {thing.de('acc')}"
        if self.chance(0.3) or verb.objects not in at_leaving:
            manner = self.pair({"quietly": "leise", "carefully": "vorsichtig", "at once": "sofort", "later": "später"})
            return sentence(f"{en} {manner[0]}", f"{de} {manner[1]}{prefix}")
        room = self.the(self.others(self.words.of_kind("R"), thing), 0.15)
        return sentence(f"{en} before you leave {room.en()}", f"{de}{prefix}, bevor Sie {room.de('acc')} verlassen")

    def notice_forbidden(self) -> Pair:
        """Parking is forbidden in front of the castle. Dogs are not allowed in the museum."""
        if self.chance(0.6):
            en, (de, kinds) = self.rng.choice(list(_ACTIVITIES.items()))
            where = self.place(kinds)
            return sentence(f"{en} is forbidden {where[0]}", f"{de} ist {where[1]} verboten")
        where = self.place("BR")
        things = [*self.words.of_kind("A"), *(self.words.noun(en) for en in ("bicycle", "umbrella", "ball", "camera"))]
        thing = self.phrase(things, [""], adjective=0.3, plural=1.0)
        return sentence(f"{thing.en()} are not allowed {where[0]}", f"{thing.de('nom')} sind {where[1]} nicht erlaubt")

    def notice_where(self) -> Pair:
        """The office is on the second floor. The station is behind the town hall. The castle is 300 metres away."""
        draw = self.rng.random()
        if draw < 0.2:
            room, (en, de) = self.the(self.words.of_kind("R")), self.pair(ORDINALS)
            return sentence(f"{room.en()} is on the {en} floor", f"{room.de('nom')} ist im {de}en Stock")
        one = self.the(self.landmarks, 0.15)
        other = self.the(self.others(self.landmarks, one), 0.15)
        third = self.the(self.others(self.landmarks, one, other), 0.15)
        if draw < 0.45:
            metres = self.rng.randrange(50, 1000, 50)
            en = f"{one.en()} is {metres} metres from {other.en()}"
            return sentence(en, f"{one.de('nom')} ist {metres} Meter {prepositional('von', other, 'dat')} entfernt")
        if draw < 0.65:
            en = f"{one.en()} is between {other.en()} and {third.en()}"
            return sentence(en, f"{one.de('nom')} ist zwischen {other.de('dat')} und {third.de('dat')}")
        if draw < 0.8:
            en = f"you will find {one.en()} opposite {other.en()}"
            return sentence(en, f"Sie finden {one.de('acc')} gegenüber {other.de('dat')}")
        en, de = self.pair(_NEAR)
        return sentence(f"{one.en()} is {en} {other.en()}", f"{one.de('nom')} ist {prepositional(de, other, 'dat')}")

    def notice_question(self) -> Pair:
        """Where is the nearest pharmacy? How do I get to the station? When does the next train to Hamburg depart?"""
        draw = self.rng.random()
        if draw < 0.15:
            place = NounPhrase(self.rng.choice(self.landmarks), "the", _NEAREST)
            where = self.on_weekday() if self.chance(0.3) else ("", "")
            if where[0]:
                en = f"is {place.en()} open {where[0]}"
                return sentence(en, f"ist {place.de('nom')} {where[1]} geöffnet", "?")
            return sentence(f"where is {place.en()}", f"wo ist {place.de('nom')}", "?")
        if draw < 0.35:
            goal = self.way("to")
            start = self.way("from") if self.chance(0.7) else ("", "")
            en, de = f"how do I get {start[0]} {goal[0]}", f"wie komme ich {start[1]} {goal[1]}"
            return sentence(en.replace("  ", " "), de.replace("  ", " "), "?")
        if draw < 0.6:
            thing = self.phrase(self.words.used_as("goods"), ["the", "this"], adjective=0.7, plural=0.2)
            en, de = ("do", "kosten") if thing.plural else ("does", "kostet")
            return sentence(f"how much {en} {thing.en()} cost", f"wie viel {de} {thing.de('nom')}", "?")
        if draw < 0.75:
            by_rail = self.chance(0.4)
            goal = self.way("city" if by_rail else "to")
            line = NounPhrase(self.words.noun("train" if by_rail else self.rng.choice(("bus", "tram"))), "the", _NEXT)
            en = f"when does {line.en()} {goal[0]} depart"
            return sentence(en, f"wann fährt {line.de('nom')} {goal[1]} ab", "?")
        place, where = self.phrase(self.landmarks, ["a"], 0.2), self.near()
        return sentence(f"is there {place.en()} {where[0]}", f"gibt es {where[1]} {place.de('acc')}", "?")

    def notice_found(self) -> Pair:
        """A black umbrella was found in the park on 3 March. We meet on Friday at 9:15 in front of the church."""
        where = self.near() if self.chance(0.3) else self.place("BN")
        if self.chance(0.5):
            (en_day, de_day), (en_time, de_time) = self.on_weekday(), self.clock()
            en = f"we meet {en_day} {en_time} {where[0]}"
            return sentence(en, f"wir treffen uns {de_day} {de_time} {where[1]}")
        thing, day = self.phrase(self.words.used_as("own"), ["a"], 0.7), self.day()
        en_day, de_day = self.dated(day, year=self.chance(0.3))
        en = f"{thing.en()} was found {where[0]} on {en_day}"
        return sentence(en, f"am {de_day} wurde {where[1]} {thing.de('nom')} gefunden")

    def turning(self) -> Pair:
        """Return `turn left after the bridge`."""
        en, de = self.pair(_TURNING)
        side, mark = self.pair(_SIDES), self.the(self.landmarks, 0.3)
        return (
            f"turn {side[0]} {en} {mark.en()}",
            f"biegen Sie {prepositional(de, mark, 'dat')} {side[1]} ab",
        )

    def crossing(self) -> Pair:
        """Return `cross the square`, `walk past the church`, `walk along the river` or `go through the park`."""
        draw = self.rng.random()
        if draw < 0.35:
            where = self.the(self.words.used_as("across"), 0.3)
            return f"cross {where.en()}", f"überqueren Sie {where.de('acc')}"
        if draw < 0.65:
            mark = self.the(self.landmarks, 0.3)
            return f"walk past {mark.en()}", f"gehen Sie {prepositional('an', mark, 'dat')} vorbei"
        if draw < 0.75:
            along = self.the([self.words.noun(noun) for noun in ("river", "street", "beach", "wall")], 0.3)
            return f"walk along {along.en()}", f"gehen Sie {along.de('acc')} entlang"
        en, de = self.way("through")
        return f"go {en}", f"gehen Sie {de}"

    def notice_direction(self) -> Pair:
        """Turn left after the bridge. Cross the square and turn right at the hotel. Go straight ahead to the church."""
        draw = self.rng.random()
        turning, crossing = self.turning(), self.crossing()
        if draw < 0.2:
            return sentence(*turning)
        if draw < 0.5:
            return sentence(f"{crossing[0]} and {turning[0]}", f"{crossing[1]} und {turning[1]}")
        if draw < 0.6:
            goal, side = self.way("to"), self.pair(_SIDES)
            en = f"go straight ahead {goal[0]} and then turn {side[0]}"
            return sentence(en, f"gehen Sie geradeaus bis {goal[1]} und biegen Sie dann {side[1]} ab")
        if draw < 0.75:
            (en, de), side, mark = self.pair(ORDINALS), self.pair(_SIDES), self.the(self.landmarks, 0.3)
            english = f"take the {en} street on the {side[0]} after {mark.en()}"
            return sentence(english, f"nehmen Sie {prepositional('nach', mark, 'dat')} die {de}e Straße {side[1]}")
        if draw < 0.9:
            line, goal, mark = self.the(self.words.used_as("line"), 0.0), self.way("to"), self.the(self.landmarks)
            en = f"take {line.en()} {goal[0]} and get off at {mark.en()}"
            de = f"nehmen Sie {line.de('acc')} {goal[1]} und steigen Sie {prepositional('an', mark, 'dat')} aus"
            return sentence(en, de)
        metres, side = self.rng.randrange(50, 1000, 50), self.pair(_SIDES)
        en = f"{crossing[0]} and turn {side[0]} after {metres} metres"
        return sentence(en, f"{crossing[1]} und biegen Sie nach {metres} Metern {side[1]} ab")

    def caption(self) -> Pair:
        """Return a caption of any form."""
        return self._any(
            (14, self.caption_seen),
            (3, self.caption_couple),
            (6, self.caption_habit),
            (6, self.caption_past),
            (5, self.caption_modal),
            (6, self.caption_subordinate),
            (3, self.caption_said),
            (4, self.caption_relative),
            (2, self.caption_there),
            (3, self.caption_it),
            (3, self.caption_compared),
            (4, self.caption_giving),
            (3, self.caption_purpose),
            (3, self.caption_question),
        )

    def notice(self) -> Pair:
        """Return a notice of any form."""
        return self._any(
            (3, self.notice_event),
            (3, self.notice_closed),
            (3, self.notice_price),
            (3, self.notice_ticket),
            (3, self.notice_line),
            (3, self.notice_request),
            (2, self.notice_forbidden),
            (3, self.notice_where),
            (3, self.notice_question),
            (2, self.notice_found),
            (5, self.notice_direction),
        )

    def _any(self, *forms: tuple[int, Callable[[], Pair]]) -> Pair:
        (form,) = self.rng.choices([form for _, form in forms], [weight for weight, _ in forms])
        return form()
