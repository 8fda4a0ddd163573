"""The alphabets of the glyph data set: which stroke-font characters, under which names, in which split.

A. V. Hershey digitised these characters at the U.S. National Bureau of Standards; the
PyPI package Hershey-Fonts carries them as polylines, keyed by ASCII positions that say
little about what is drawn there. Hence these tables: each page takes some characters of
one font and names them. Whole alphabets belong to one split. A character that an
alphabet merely borrows (Greek capital alpha is a Latin A) may be listed: glyphs.py keeps
a shape once, in the alphabet that comes first here. What is left out by hand passes, to a person, for a
character of another alphabet though its geometry differs (katakana ni and an equals sign).

    PAGES               the tables
    page_strokes        a page  ->  its named characters as polylines in font units

It does not know how shapes are compared, cleaned or drawn.
Source: National Bureau of Standards Special Publication 424 (1976).
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass

from metanas_training.datasets.centrelines import Polyline

try:
    from HersheyFonts import HersheyFonts
except ImportError as error:
    raise ImportError(
        'the glyph data set needs the package Hershey-Fonts, which is not installed: pip install "metanas-edge[train]"'
    ) from error


@dataclass(frozen=True)
class Page:
    """Some characters of one stroke font."""

    alphabet: str
    """Name of the alphabet; several pages may share one."""
    split: str
    """``train``, ``val`` or ``test``."""
    font: str
    """Name of the font in the package."""
    characters: str
    """Keys of the characters in that font."""
    names: tuple[str, ...]
    """Their names, in the same order."""
    pen_units: float | None = None
    """For stems outlined with parallel lines: the width in font units of the pen that closes the gaps."""


def _words(text: str) -> list[str]:
    return text.split()


_LATIN = string.ascii_uppercase + string.ascii_lowercase
_PUNCTUATION = {
    "!": "exclamation", "#": "number", "$": "dollar", "%": "percent", "&": "ampersand", "(": "parenthesis_left",
    ")": "parenthesis_right", "*": "asterisk", "+": "plus", "-": "dash", "/": "slash", ":": "colon", ";": "semicolon",
    "<": "less", "=": "equals", ">": "greater", "?": "question", "@": "at", "\\": "backslash",
    "^": "arrow_up", "|": "bar",
}  # fmt: skip
_PUNCTUATION_OUTLINED = {
    "[": "bracket_left", "]": "bracket_right", "{": "brace_left", "~": "tilde",
}  # fmt: skip
_SYMBOLS = {
    "/": "arc_upper_left", "0": "arc_lower_left", "1": "arc_lower_right", "2": "arc_upper_right", "3": "arc_bottom",
    "6": "arc_top", "7": "zigzag_left", "8": "zigzag_up", "9": "zigzag_n", ":": "zigzag_tilted",
    ";": "loop_up", "<": "loop_left", "=": "loop_down", ">": "loop_right", "?": "ribbon_right", "@": "ribbon_left",
    "A": "target", "C": "dashes", "D": "bracket_down", "E": "wedge", "F": "ground",
    "G": "triangle_down", "H": "circle", "I": "square", "J": "triangle", "K": "rhombus", "L": "star",
    "P": "circle_striped", "Q": "square_striped", "R": "triangle_nested_up", "S": "triangle_nested_left",
    "T": "triangle_nested_down", "U": "triangle_nested_right", "V": "flag", "W": "buoy", "X": "anchor", "Y": "mast",
    "Z": "hammers", "[": "derrick", "]": "slope", "^": "greek_cross", "_": "crescent", "`": "hexagram", "a": "bell",
    "b": "palm", "c": "fir", "d": "oak", "e": "poplar", "f": "sunrise", "g": "cushion", "h": "shamrock", "i": "section",
    "j": "dagger", "k": "double_dagger", "m": "spade", "n": "heart", "p": "club",
    "w": "weierstrass", "}": "long_s", "~": "pentagram",
}  # fmt: skip
_MATHEMATICS = {
    "!": "plus_minus", '"': "minus_plus", "#": "times", "&": "less_or_equal", "'": "greater_or_equal", "?": "not_equal",
    "@": "identical", "^": "proportional", "_": "infinity", "d": "subset", "e": "union", "f": "superset",
    "g": "intersection", "h": "element", "i": "arrow_right", "k": "arrow_left", "l": "arrow_down", "v": "exists",
    "x": "divide", "y": "parallel", "z": "perpendicular", "|": "angle", "~": "therefore",
}  # fmt: skip
_MATHEMATICS_OUTLINED = {
    "m": "partial", "n": "nabla", "p": "integral", "w": "aleph", ":": "product", ";": "sum",
}  # fmt: skip
_CYRILLIC = {
    "B": "be", "C": "ve", "E": "de", "G": "zhe", "I": "i", "J": "short_i", "L": "el", "P": "pe",
    "U": "ef", "W": "tse", "X": "che", "Y": "sha", "Z": "shcha", "u": "small_ef",
}  # fmt: skip
_CYRILLIC_MORE = {"$": "yeru", "C": "e", "U": "yu", "]": "hard_sign", "^": "ya", "_": "soft_sign"}
_ASTROLOGY = {
    "#": "sun", "$": "mercury", "%": "venus", "&": "earth", "'": "mars", "*": "jupiter", "+": "saturn", "-": "uranus",
    "/": "neptune", ":": "pluto", ";": "moon", "<": "comet", "=": "star", ">": "ascending_node",
    "?": "descending_node", "@": "aries", "[": "taurus", "]": "gemini", "^": "cancer", "`": "virgo",
    "{": "scorpio", "|": "sagittarius", "}": "capricorn", "~": "aquarius", "!": "pisces",
}  # fmt: skip
_MUSIC = {
    "'": "sharp", "(": "natural", ",": "rest_sixteenth", "-": "rest_eighth", ".": "rest_quarter",
    ";": "clef_treble", "<": "clef_bass_old", "=": "clef_bass", ">": "clef_old", "?": "clef_alto",
}  # fmt: skip
_WEATHER = {
    "$": "mound", "&": "dome", "'": "sail", "(": "peak", ")": "arch",
    "^": "bend", "|": "lightning",
}  # fmt: skip
_GREEK_NAMES = _words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
)
_GREEK = {chr(ord("A") + i): name.capitalize() for i, name in enumerate(_GREEK_NAMES)} | {
    chr(ord("a") + i): name for i, name in enumerate(_GREEK_NAMES)
}
_KANJI = dict(
    zip(
        "#$%&'()*+,-./015678:",
        _words(
            "sun yen year big country person east middle book capital exit time above individual ten four five six "
            "seven nine"
        ),
        strict=True,
    )
)
_KANA_NAMES = _words(
    "a i u e o ka ki ku ke ko sa shi su se so ta chi tsu te to na ni nu ne no ha hi fu he ho ma mi mu me mo ya - yu - "
    "yo ra ri ru re ro wa wi - we wo n"
)
# The p sounds that follow differ from the b sounds by a ring the size of a pen's dot.
_VOICED_KANA_NAMES = _words("ga gi gu ge go za ji zu ze zo da di du de do ba bi bu be bo")


def _kana(first: int, first_voiced: int, *, but: tuple[str, ...] = ()) -> dict[str, str]:
    """The fonts' kana run in the order of the sounds; ``-`` is a repeated character, ``but`` what to leave out."""
    plain = {chr(first + i): name for i, name in enumerate(_KANA_NAMES) if name != "-"}
    voiced = {chr(first_voiced + i): name for i, name in enumerate(_VOICED_KANA_NAMES)}
    return {key: name for key, name in (plain | voiced).items() if name not in but}


def _page(alphabet: str, split: str, *, font: str, names: dict[str, str], pen_units: float | None = None) -> Page:
    return Page(alphabet, split, font, "".join(names), tuple(names.values()), pen_units)


def _without(lookalikes: str) -> str:
    """The Latin letters but for those that pass, to a person, for another alphabet's."""
    return "".join(letter for letter in _LATIN if letter not in lookalikes)


def _letters(characters: str) -> dict[str, str]:
    return {character: character for character in characters}


# The order decides who keeps a shape that two alphabets share.
PAGES: tuple[Page, ...] = (
    _page("roman", "train", font="rowmans", names=_letters(_LATIN)),
    _page("roman", "train", font="timesr", names={"a": "a_two_storeys", "g": "g_two_storeys"}, pen_units=2.2),
    _page("digits", "train", font="rowmans", names=_letters(string.digits)),
    _page("punctuation", "train", font="rowmans", names=_PUNCTUATION),
    _page("punctuation", "train", font="rowmans", names=_PUNCTUATION_OUTLINED, pen_units=2.2),
    _page("script", "train", font="scripts", names=_letters(_LATIN)),
    _page("gothic_english", "train", font="gothiceng", names=_letters(_LATIN), pen_units=2.2),
    _page("gothic_german", "train", font="gothicger", names=_letters(_without("dgijltvO")), pen_units=2.2),
    _page("hiragana", "train", font="japanese", names=_kana(0x41, 0x78, but=("ku",)), pen_units=2.2),
    _page("symbols", "train", font="symbolic", names=_SYMBOLS),
    _page("mathematics", "val", font="mathlow", names=_MATHEMATICS),
    _page("mathematics", "val", font="mathlow", names=_MATHEMATICS_OUTLINED, pen_units=2.2),
    _page("cyrillic", "val", font="cyrilc_1", names=_CYRILLIC, pen_units=2.2),
    _page("cyrillic", "val", font="cyrillic", names=_CYRILLIC_MORE, pen_units=2.2),
    _page("astrology", "val", font="astrology", names=_ASTROLOGY, pen_units=2.2),
    _page("music", "val", font="music", names=_MUSIC, pen_units=1.6),
    _page("weather", "val", font="meteorology", names=_WEATHER),
    _page(
        "katakana",
        "test",
        font="japanese",
        names=_kana(0x91, 0xC8, but=("he", "be", "no", "ri", "fu", "ni", "ro")),
        pen_units=2.2,
    ),
    _page("kanji", "test", font="japanese", names=_KANJI, pen_units=2.2),
    _page(
        "greek", "test", font="greeks", names={key: name for key, name in _GREEK.items() if name not in ("chi", "Psi")}
    ),
    _page(
        "gothic_italian",
        "test",
        font="gothicita",
        names=_letters(_without("DQ" + string.ascii_lowercase)),
        pen_units=2.2,
    ),
)


def page_strokes(pages: tuple[Page, ...]) -> Iterator[tuple[Page, str, tuple[Polyline, ...]]]:
    """Yield each character of the pages: its page, its name and its polylines in font units (y points down)."""
    library, fonts = HersheyFonts(), {}
    for page in pages:
        if page.font not in fonts:
            library.load_default_font(page.font)
            fonts[page.font] = library.all_glyphs
        for character, name in zip(page.characters, page.names, strict=True):
            strokes = fonts[page.font][character].strokes
            yield page, name, tuple(tuple((float(x), float(y)) for x, y in stroke) for stroke in strokes if stroke)
