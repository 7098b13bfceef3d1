"""English and German for the demo corpus: words with their forms, noun phrases and clauses in both languages.

Noun phrases agree in gender, case and number, and their adjectives with the determiner; clauses put the verb second,
after an adverbial too, and last in subordinate clauses; prefixes separate, and join again at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# class, English singular and plural, gender, German singular (weak nouns: nominative:other cases) and plural, uses.
# Classes: Person, Animal, Thing, Clothes, Food, Device, Vehicle, Building, N (open place), Room, Event.
# Uses: what a verb's last column asks for; PREPOSITION/PRÄPOSITION where something is; `to` and others where one goes.
_NOUNS = """
P man men m Mann Männer
P woman women f Frau Frauen
P girl girls n Mädchen Mädchen
P boy boys m Junge:Jungen Jungen
P child children n Kind Kinder
P teacher teachers m Lehrer Lehrer
P driver drivers m Fahrer Fahrer
P tourist tourists m Tourist:Touristen Touristen
P musician musicians m Musiker Musiker
P cook cooks m Koch Köche
P waitress waitresses f Kellnerin Kellnerinnen
P doctor doctors m Arzt Ärzte
P nurse nurses f Krankenschwester Krankenschwestern
P neighbour neighbours m Nachbar:Nachbarn Nachbarn
P gardener gardeners m Gärtner Gärtner
P baker bakers m Bäcker Bäcker
P grandmother grandmothers f Großmutter Großmütter
P grandfather grandfathers m Großvater Großväter
P visitor visitors m Besucher Besucher
P policeman policemen m Polizist:Polizisten Polizisten
A dog dogs m Hund Hunde feed draw washable
A cat cats f Katze Katzen feed draw
A horse horses n Pferd Pferde feed draw ride washable
A bird birds m Vogel Vögel feed draw
A duck ducks f Ente Enten feed draw
A goat goats f Ziege Ziegen feed draw
A rabbit rabbits n Kaninchen Kaninchen feed draw
T book books n Buch Bücher read goods
T letter letters m Brief Briefe read write pickup
T newspaper newspapers f Zeitung Zeitungen read
T bag bags f Tasche Taschen carry goods openable own
T basket baskets m Korb Körbe carry goods
T box boxes f Kiste Kisten carry openable
T suitcase suitcases m Koffer Koffer carry pull pickup goods openable own
T ladder ladders f Leiter Leitern carry
T umbrella umbrellas m Regenschirm Regenschirme carry goods openable own
T chair chairs m Stuhl Stühle carry fix goods paint
T table tables m Tisch Tische fix goods paint
T key keys m Schlüssel Schlüssel own
T map maps m Stadtplan Stadtpläne read goods
T picture pictures n Bild Bilder goods art
T flower flowers f Blume Blumen goods draw art
T ball balls m Ball Bälle goods own
T guitar guitars f Gitarre Gitarren fix goods own
T cup cups f Tasse Tassen goods dishes
T plate plates m Teller Teller goods dishes
T glass glasses n Glas Gläser goods dishes
T boat boats n Boot Boote fix pull paint
T fence fences m Zaun Zäune fix paint
T door doors f Tür Türen openable paint fix
T window windows n Fenster Fenster openable
C coat coats m Mantel Mäntel goods dress own washable
C jacket jackets f Jacke Jacken goods dress own washable
C shirt shirts n Hemd Hemden goods dress own washable
C dress dresses n Kleid Kleider goods dress washable
C skirt skirts m Rock Röcke goods dress washable
C pullover pullovers m Pullover Pullover goods dress own washable
C hat hats m Hut Hüte goods head own
C cap caps f Mütze Mützen goods head own
C helmet helmets m Helm Helme goods head own
F apple apples m Apfel Äpfel food goods
F pear pears f Birne Birnen food goods
F cake cakes m Kuchen Kuchen food goods bake
F egg eggs n Ei Eier food goods
F carrot carrots f Karotte Karotten food goods
D lamp lamps f Lampe Lampen switch fix goods
D radio radios n Radio Radios switch fix goods
D television televisions m Fernseher Fernseher switch fix goods
D camera cameras f Kamera Kameras switch fix goods own
D clock clocks f Uhr Uhren fix goods
D computer computers m Computer Computer switch fix goods
V bicycle bicycles n Fahrrad Fahrräder fix goods own
V car cars n Auto Autos fix washable road
V bus buses m Bus Busse line road
V train trains m Zug Züge
V tram trams f Straßenbahn Straßenbahnen line road
V ferry ferries f Fähre Fähren
V taxi taxis n Taxi Taxis road
V lorry lorries m Lastwagen Lastwagen fix road
B station stations m Bahnhof Bahnhöfe at/an to landmark
B church churches f Kirche Kirchen in/in to into landmark sight
B school schools f Schule Schulen in/in to into landmark
B museum museums n Museum Museen in/in to into landmark opens
B library libraries f Bibliothek Bibliotheken in/in to into landmark opens
B town_hall town_halls n Rathaus Rathäuser in/in to into landmark opens sight
B hospital hospitals n Krankenhaus Krankenhäuser in/in to landmark
B bakery bakeries f Bäckerei Bäckereien in/in to into landmark opens
B pharmacy pharmacies f Apotheke Apotheken in/in to into landmark opens
B hotel hotels n Hotel Hotels in/in to into landmark
B restaurant restaurants n Restaurant Restaurants in/in to into landmark opens
B shop shops n Geschäft Geschäfte in/in to into opens
B theatre theatres n Theater Theater in/in to into landmark opens
B cinema cinemas n Kino Kinos in/in to into landmark opens
B castle castles n Schloss Schlösser in/in to into landmark sight draw opens
B tower towers m Turm Türme to landmark sight draw
B house houses n Haus Häuser in/in into landmark draw
B bridge bridges f Brücke Brücken on/auf to across landmark sight draw
N square squares m Platz Plätze on/auf across
N market markets m Markt Märkte at/auf to
N street streets f Straße Straßen on/auf across
N park parks m Park Parks in/in to into through
N garden gardens m Garten Gärten in/in into through
N forest forests m Wald Wälder in/in into through
N meadow meadows f Wiese Wiesen on/auf across
N field fields n Feld Felder on/auf across
N beach beaches m Strand Strände on/an to
N lake lakes m See Seen by/an to around sight
N river rivers m Fluss Flüsse by/an to sight
N harbour harbours m Hafen Häfen at/an to
N farm farms m Bauernhof Bauernhöfe on/auf to
N village villages n Dorf Dörfer in/in into through
B car_park car_parks m Parkplatz Parkplätze in/auf to
B bus_stop bus_stops f Haltestelle Haltestellen at/an to landmark
B balcony balconies m Balkon Balkone on/auf
N courtyard courtyards m Hof Höfe in/in into through
N tree trees m Baum Bäume under/unter draw around
N bench benches f Bank Bänke on/auf paint
N wall walls f Mauer Mauern on/auf paint
R kitchen kitchens f Küche Küchen in/in into tidy
R room rooms n Zimmer Zimmer in/in into tidy
R office offices n Büro Büros in/in into tidy
R hall halls m Saal Säle in/in into tidy
R cellar cellars m Keller Keller in/in into tidy
E concert concerts n Konzert Konzerte event
E exhibition exhibitions f Ausstellung Ausstellungen event
E course courses m Kurs Kurse event
E film films m Film Filme event
E lecture lectures m Vortrag Vorträge event
E tour tours f Führung Führungen event
"""

# noun classes it goes with, English, German (attributive stem where it differs), comparatives (- where not used).
_ADJECTIVES = """
CTDVF red rot - -
CTDV blue blau - -
CTFV green grün - -
CTFV yellow gelb - -
ACTDV black schwarz - -
ACTDV white weiß - -
ACT brown braun - -
ACTV grey grau - -
PACTDVBNR old alt older älter
CTDVBRE new neu newer neuer
ATFVBN big groß bigger größer
PACTFDVBNR small klein smaller kleiner
P young jung younger jünger
P tall groß taller größer
P friendly freundlich - -
PA tired müde - -
PA happy glücklich - -
PA hungry hungrig - -
CE long lang longer länger
TD heavy schwer heavier schwerer
T light leicht lighter leichter
R light hell - -
R dark dunkel:dunkl - -
TDV broken kaputt - -
CTDV expensive teuer:teur more_expensive teurer
CTDV cheap billig cheaper billiger
CBN beautiful schön more_beautiful schöner
BE famous berühmt more_famous berühmter
BDR modern modern more_modern moderner
CTDVR clean sauber - -
CT wet nass - -
R empty leer - -
BNR quiet ruhig quieter ruhiger
R warm warm - -
R cold kalt - -
F fresh frisch - -
F sweet süß - -
E interesting interessant more_interesting interessanter
"""

# subjects' classes, English forms | German infinitive (prefix+verb), third person, participle, haben or sein | objects.
_TRANSITIVE = """
P read reads reading read read | lesen liest gelesen h | read
P write writes writing wrote written | schreiben schreibt geschrieben h | write
P carry carries carrying carried carried | tragen trägt getragen h | carry
P buy buys buying bought bought | kaufen kauft gekauft h | goods
P sell sells selling sold sold | verkaufen verkauft verkauft h | goods
P repair repairs repairing repaired repaired | reparieren repariert repariert h | fix
P paint paints painting painted painted | streichen streicht gestrichen h | paint
P paint paints painting painted painted | malen malt gemalt h | art
P draw draws drawing drew drawn | zeichnen zeichnet gezeichnet h | draw
P open opens opening opened opened | öffnen öffnet geöffnet h | openable
P close closes closing closed closed | schließen schließt geschlossen h | openable
P look_for looks_for looking_for looked_for looked_for | suchen sucht gesucht h | own
P hide hides hiding hid hidden | verstecken versteckt versteckt h | own
P pick_up picks_up picking_up picked_up picked_up | ab+holen holt abgeholt h | pickup
P switch_on switches_on switching_on switched_on switched_on | ein+schalten schaltet eingeschaltet h | switch
P switch_off switches_off switching_off switched_off switched_off | aus+schalten schaltet ausgeschaltet h | switch
P put_on puts_on putting_on put_on put_on | an+ziehen zieht angezogen h | dress
P put_on puts_on putting_on put_on put_on | auf+setzen setzt aufgesetzt h | head
P tidy_up tidies_up tidying_up tidied_up tidied_up | auf+räumen räumt aufgeräumt h | tidy
P wash washes washing washed washed | waschen wäscht gewaschen h | washable
P wash washes washing washed washed | spülen spült gespült h | dishes
P bake bakes baking baked baked | backen backt gebacken h | bake
P eat eats eating ate eaten | essen isst gegessen h | food
A eat eats eating ate eaten | fressen frisst gefressen h | food
P feed feeds feeding fed fed | füttern füttert gefüttert h | feed
P push pushes pushing pushed pushed | schieben schiebt geschoben h | pull
P pull pulls pulling pulled pulled | ziehen zieht gezogen h | pull
P photograph photographs photographing photographed photographed | fotografieren fotografiert fotografiert h | sight
P visit visits visiting visited visited | besuchen besucht besucht h | sight
P ride rides riding rode ridden | reiten reitet geritten h | ride
"""

# In place of objects: the classes of the places where it is done; - for near a landmark only.
_INTRANSITIVE = """
PA sit sits sitting sat sat | sitzen sitzt gesessen h | BNR
PAV stand stands standing stood stood | stehen steht gestanden h | BNR
PA lie lies lying lay lain | liegen liegt gelegen h | N
PA sleep sleeps sleeping slept slept | schlafen schläft geschlafen h | NR
PAV wait waits waiting waited waited | warten wartet gewartet h | BN
PA play plays playing played played | spielen spielt gespielt h | NR
P work works working worked worked | arbeiten arbeitet gearbeitet h | BNR
P dance dances dancing danced danced | tanzen tanzt getanzt h | BNR
P sing sings singing sang sung | singen singt gesungen h | BNR
P laugh laughs laughing laughed laughed | lachen lacht gelacht h | BNR
P cook cooks cooking cooked cooked | kochen kocht gekocht h | R
V stop stops stopping stopped stopped | halten hält gehalten h | -
"""

_MOTION = """
PA run runs running ran run | laufen läuft gelaufen s | -
P walk walks walking walked walked | gehen geht gegangen s | -
P drive drives driving drove driven | fahren fährt gefahren s | -
V drive drives driving drove driven | fahren fährt gefahren s | -
P ride_a_bicycle rides_a_bicycle riding_a_bicycle rode_a_bicycle ridden_a_bicycle | fahren fährt gefahren s | bicycle
P hurry hurries hurrying hurried hurried | eilen eilt geeilt s | -
PA come_back comes_back coming_back came_back come_back | zurück+kommen kommt zurückgekommen s | from
"""

# A receiver in the dative, and something in the accusative.
_GIVING = """
P give gives giving gave given | geben gibt gegeben h | goods
P show shows showing showed shown | zeigen zeigt gezeigt h | goods
P bring brings bringing brought brought | bringen bringt gebracht h | goods
P send sends sending sent sent | schicken schickt geschickt h | write
"""

# An object in the dative.
_HELPING = """
P help helps helping helped helped | helfen hilft geholfen h | person
P thank thanks thanking thanked thanked | danken dankt gedankt h | person
"""

HABITS = {
    "every day": "jeden Tag",
    "every week": "jede Woche",
    "every morning": "jeden Morgen",
    "in the evening": "am Abend",
    "in the afternoon": "am Nachmittag",
    "at night": "in der Nacht",
    "at noon": "am Mittag",
    "at the weekend": "am Wochenende",
    "in spring": "im Frühling",
    "in summer": "im Sommer",
    "in autumn": "im Herbst",
    "in winter": "im Winter",
}
NOW = {"today": "heute", "now": "jetzt", "this morning": "heute Morgen", "again": "wieder"}
PAST = {
    "yesterday": "gestern",
    "last week": "letzte Woche",
    "last summer": "letzten Sommer",
    "two days ago": "vor zwei Tagen",
}
MANNERS = {"slowly": "langsam", "quickly": "schnell", "quietly": "leise", "carefully": "vorsichtig", "alone": "allein"}
CALM_MANNERS = {"quietly": "leise", "alone": "allein"}
NUMBERS = {"two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs", "ten": "zehn"}
ORDINALS = {"first": "erst", "second": "zweit", "third": "dritt", "fourth": "viert"}
MODALS = {
    "can": ("can", "can", "kann", "können"),
    "must": ("must", "must", "muss", "müssen"),
    "may": ("may", "may", "darf", "dürfen"),
    "want": ("wants to", "want to", "möchte", "möchten"),
}
CITIES = {
    "Berlin": "Berlin",
    "Hamburg": "Hamburg",
    "Bremen": "Bremen",
    "Leipzig": "Leipzig",
    "Munich": "München",
    "Cologne": "Köln",
    "Vienna": "Wien",
    "Zurich": "Zürich",
    "Nuremberg": "Nürnberg",
    "Hanover": "Hannover",
}
WEEKDAYS = {
    "Monday": "Montag",
    "Tuesday": "Dienstag",
    "Wednesday": "Mittwoch",
    "Thursday": "Donnerstag",
    "Friday": "Freitag",
    "Saturday": "Samstag",
    "Sunday": "Sonntag",
}
MONTHS = {
    "January": "Januar",
    "February": "Februar",
    "March": "März",
    "April": "April",
    "May": "Mai",
    "June": "Juni",
    "July": "Juli",
    "August": "August",
    "September": "September",
    "October": "Oktober",
    "November": "November",
    "December": "Dezember",
}

Case = Literal["nom", "acc", "dat"]
Tense = Literal["present", "progressive", "past", "perfect", "can", "must", "may", "want"]
Pair = tuple[str, str]

# Endings of der-words and ein-words, and of an adjective after them: by case, then m f n and plural.
_THE = {"nom": "der die das die", "acc": "den die das die", "dat": "dem der dem den"}
_DER_WORD = {"nom": "er e es e", "acc": "en e es e", "dat": "em er em en"}
_EIN_WORD = {"nom": "- e - e", "acc": "en e - e", "dat": "em er em en"}
_WEAK = {"nom": "e e e en", "acc": "en e e en", "dat": "en en en en"}
_MIXED = {"nom": "er e es en", "acc": "en e es en", "dat": "en en en en"}
_STRONG_PLURAL = {"nom": "e", "acc": "e", "dat": "en"}
_EIN_WORDS = {"a": "ein", "no": "kein", "his": "sein", "her": "ihr", "their": "ihr", "your": "Ihr", "my": "mein"}
CONTRACTED = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "von dem": "vom",
    "zu dem": "zum",
    "zu der": "zur",
    "bei dem": "beim",
}


@dataclass(frozen=True)
class Noun:
    """One noun: its forms, its class and its uses."""

    kind: str
    en: str
    en_plural: str
    gender: str
    de: str
    de_oblique: str
    de_plural: str
    uses: frozenset[str]
    place: Pair | None

    def german(self, case: Case, plural: bool) -> str:
        """Return the German form; a dative plural ends with -n, but after -n and -s."""
        if not plural:
            return self.de if case == "nom" else self.de_oblique
        return f"{self.de_plural}n" if case == "dat" and self.de_plural[-1] not in "ns" else self.de_plural


@dataclass(frozen=True)
class Adjective:
    """One adjective and the classes of nouns that it goes with."""

    kinds: str
    en: str
    de: str
    stem: str
    en_more: str
    de_more: str


@dataclass(frozen=True)
class Verb:
    """One verb: English base, -s, -ing, past, participle; German plural (as the infinitive), singular, participle."""

    kinds: str
    en: tuple[str, str, str, str, str]
    prefix: str
    plural: str
    singular: str
    participle: str
    is_sein: bool
    objects: str

    @property
    def infinitive(self) -> str:
        """Return the infinitive with its prefix."""
        return self.prefix + self.plural

    @property
    def infinitive_with_zu(self) -> str:
        """Return `zu tragen`, or `abzuholen` where the prefix is separable."""
        return f"{self.prefix}zu{self.plural}" if self.prefix else f"zu {self.plural}"


@dataclass(frozen=True)
class NounPhrase:
    """A determiner (the, a, this, no, a possessive, a number, or nothing before a plural), an adjective, a noun."""

    noun: Noun
    determiner: str
    adjective: Adjective | None = None
    plural: bool = False
    after: Pair | None = None  # `in a red coat`

    @property
    def indefinite(self) -> bool:
        """Return whether it stands after the place in German."""
        return self.determiner not in ("the", "this", "his", "her", "their", "your", "my")

    @property
    def _column(self) -> int:
        return 3 if self.plural else "mfn".index(self.noun.gender)

    def en(self) -> str:
        """Return the English phrase."""
        words = [self.adjective.en] if self.adjective else []
        words.append(self.noun.en_plural if self.plural else self.noun.en)
        determiner = self.determiner
        if determiner == "a" and words[0][0] in "aeiou":
            determiner = "an"
        if determiner == "this" and self.plural:
            determiner = "these"
        words += [self.after[0]] if self.after else []
        return " ".join([determiner, *words] if determiner else words)

    def de(self, case: Case) -> str:
        """Return the German phrase in a case."""
        words = [self._german_determiner(case)] if self.determiner else []
        if self.adjective:
            stem = self.adjective.stem
            ending = self._adjective_ending(case)
            words.append(stem + (ending[1:] if stem.endswith("e") else ending))
        words.append(self.noun.german(case, self.plural))
        words += [self.after[1]] if self.after else []
        return " ".join(words)

    def pronoun(self) -> str:
        """Return er, sie or es; for a plural, sie."""
        return ("er", "sie", "es", "sie")[self._column]

    def relative(self) -> str:
        """Return the relative pronoun of a subject: der, die or das; for a plural, die."""
        return _THE["nom"].split()[self._column]

    def _german_determiner(self, case: Case) -> str:
        if self.determiner == "the":
            return _THE[case].split()[self._column]
        if self.determiner == "this":
            return "dies" + _DER_WORD[case].split()[self._column]
        if self.determiner in NUMBERS:
            return NUMBERS[self.determiner]
        ending = _EIN_WORD[case].split()[self._column].strip("-")
        return _EIN_WORDS[self.determiner] + ending

    def _adjective_ending(self, case: Case) -> str:
        if self.determiner in ("the", "this"):
            return _WEAK[case].split()[self._column]
        if self.determiner == "" or self.determiner in NUMBERS:
            return _STRONG_PLURAL[case]
        return _MIXED[case].split()[self._column]


@dataclass(frozen=True)
class Couple:
    """Two subjects joined by `and`."""

    first: NounPhrase
    second: NounPhrase
    plural: bool = True

    def en(self) -> str:
        """Return the English phrase."""
        return f"{self.first.en()} and {self.second.en()}"

    def de(self, case: Case) -> str:
        """Return the German phrase in a case."""
        return f"{self.first.de(case)} und {self.second.de(case)}"


@dataclass(frozen=True)
class Clause:
    """One clause. English: subject verb receiver object manner place direction time. See `_middle` for German.

    Pairs are English and German. `place` says where something is, `direction` where something goes.
    """

    subject: NounPhrase | Couple
    verb: Verb
    tense: Tense
    receiver: NounPhrase | None = None
    thing: NounPhrase | None = None
    manner: Pair | None = None
    place: Pair | None = None
    direction: Pair | None = None
    time: Pair | None = None

    def en(self, *, time_first: bool = False, subject: str | None = None) -> str:
        """Return the English clause; `subject` is said in place of the subject (`who`)."""
        words = [self.subject.en() if subject is None else subject, self._en_verb(), *self._en_rest()]
        if self.time:
            words = [self.time[0], *words] if time_first else [*words, self.time[0]]
        return " ".join(words)

    def de(self, *, time_first: bool = False) -> str:
        """Return the main clause: the finite verb is second, whatever is first."""
        finite, last = self._finite(), self._last()
        subject = self.subject.de("nom")
        if time_first and self.time:
            words = [self.time[1], finite, subject, *self._middle(with_time=False)]
        else:
            words = [subject, finite, *self._middle()]
        return " ".join([*words, *last])

    def de_inverted(self) -> str:
        """Return the main clause after something that takes the first place: the verb comes at once."""
        return " ".join([self._finite(), self.subject.de("nom"), *self._middle(), *self._last()])

    def de_final(self, subject: str | None = None) -> str:
        """Return the subordinate clause: the finite verb is last, its prefix joined to it."""
        first = self.subject.de("nom") if subject is None else subject
        finite, last = self._finite(), self._last()
        end = [last[0] + finite] if last and last[0] == self.verb.prefix else [*last, finite]
        return " ".join([first, *self._middle(), *end])

    def _en_verb(self) -> str:
        base, singular, progressive, past, participle = self.verb.en
        plural = self.subject.plural
        match self.tense:
            case "present":
                return base if plural else singular
            case "progressive":
                return f"{'are' if plural else 'is'} {progressive}"
            case "past":
                return past
            case "perfect":
                return f"{'have' if plural else 'has'} {participle}"
            case modal:
                return f"{MODALS[modal][1 if plural else 0]} {base}"

    def _en_rest(self) -> list[str]:
        phrases = [phrase.en() for phrase in (self.receiver, self.thing) if phrase]
        return phrases + [pair[0] for pair in (self.manner, self.place, self.direction) if pair and pair[0]]

    def _finite(self) -> str:
        plural = self.subject.plural
        match self.tense:
            case "present" | "progressive":
                return self.verb.plural if plural else self.verb.singular
            case "past" | "perfect":
                return ("sind" if plural else "ist") if self.verb.is_sein else ("haben" if plural else "hat")
            case modal:
                return MODALS[modal][3 if plural else 2]

    def _last(self) -> list[str]:
        match self.tense:
            case "present" | "progressive":
                return [self.verb.prefix] if self.verb.prefix else []
            case "past" | "perfect":
                return [self.verb.participle]
            case _:
                return [self.verb.infinitive]

    def _middle(self, *, with_time: bool = True) -> list[str]:
        """Time, receiver, definite object, manner, place, indefinite object, direction."""
        thing = self.thing.de("acc") if self.thing else None
        late = self.thing is not None and self.thing.indefinite
        words = [
            self.time[1] if self.time and with_time else None,
            self.receiver.de("dat") if self.receiver else None,
            None if late else thing,
            self.manner[1] if self.manner else None,
            self.place[1] if self.place else None,
            thing if late else None,
            self.direction[1] if self.direction else None,
        ]
        return [word for word in words if word]


@dataclass(frozen=True)
class Lexicon:
    """All words, read from the tables above."""

    nouns: tuple[Noun, ...]
    adjectives: tuple[Adjective, ...]
    transitive: tuple[Verb, ...]
    intransitive: tuple[Verb, ...]
    motion: tuple[Verb, ...]
    giving: tuple[Verb, ...]
    helping: tuple[Verb, ...]

    def used_as(self, use: str) -> list[Noun]:
        """Return the nouns of a use, in the order of the table."""
        return [noun for noun in self.nouns if use in noun.uses]

    def of_kind(self, kinds: str) -> list[Noun]:
        """Return the nouns of some classes, in the order of the table."""
        return [noun for noun in self.nouns if noun.kind in kinds]

    def noun(self, en: str) -> Noun:
        """Return a noun by its English singular."""
        return next(noun for noun in self.nouns if noun.en == en)


def read_lexicon() -> Lexicon:
    """Return the words of the tables."""
    return Lexicon(
        tuple(_noun(line) for line in _NOUNS.strip().splitlines()),
        tuple(_adjective(line) for line in _ADJECTIVES.strip().splitlines()),
        *(
            tuple(_verb(line) for line in table.strip().splitlines())
            for table in (_TRANSITIVE, _INTRANSITIVE, _MOTION, _GIVING, _HELPING)
        ),
    )


def _noun(line: str) -> Noun:
    kind, en, en_plural, gender, de, de_plural, *uses = (word.replace("_", " ") for word in line.split())
    nominative, _, oblique = de.partition(":")
    where = [use.split("/") for use in uses if "/" in use]
    place = (where[0][0], where[0][1]) if where else None
    return Noun(kind, en, en_plural, gender, nominative, oblique or nominative, de_plural, frozenset(uses), place)


def _adjective(line: str) -> Adjective:
    kinds, en, de, en_more, de_more = (word.replace("_", " ").strip("-") for word in line.split())
    predicative, _, stem = de.partition(":")
    return Adjective(kinds, en, predicative, stem or predicative, en_more, de_more)


def _verb(line: str) -> Verb:
    english, german, objects = line.split(" | ")
    kinds, *forms = (word.replace("_", " ") for word in english.split())
    infinitive, singular, participle, auxiliary = german.split()
    prefix, _, plural = infinitive.rpartition("+")
    base, third, progressive, past, past_participle = forms
    en = (base, third, progressive, past, past_participle)
    return Verb(kinds, en, prefix, plural, singular, participle, auxiliary == "s", objects.strip())


def prepositional(de_preposition: str, phrase: NounPhrase, case: Case) -> str:
    """Return `im alten Haus`: a German preposition with its phrase, contracted with the article where usual."""
    first, _, rest = phrase.de(case).partition(" ")
    if phrase.determiner == "the" and not phrase.plural:
        first = CONTRACTED.get(f"{de_preposition} {first}", f"{de_preposition} {first}")
    else:
        first = f"{de_preposition} {first}"
    return f"{first} {rest}" if rest else first
