"""One list of phones for both synthesisers: ARPAbet without stress, index 0 is silence."""

from __future__ import annotations

PHONES = (
    "sil", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy",
    "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip
"""Labels of `Phone`, in the order of the phone heads' rows."""

FLITE = {
    "pau": "sil",
    "brth": "sil",
    "h#": "sil",
    "ssil": "sil",
    "axr": "er",
    "hv": "hh",
    "em": "m",
    "en": "n",
    "el": "l",
    "nx": "n",
    "dx": "t",
}
"""flite's radio phones that are not called as in `PHONES`."""

ESPEAK = {
    "": "sil", "_": "sil", "_:": "sil", "_|": "sil", "_!": "sil", ";": "sil",
    "a": "ae", "aa": "ae", "a#": "ax", "A:": "aa", "A@": "aa", "0": "aa", "O2": "ao", "O:": "ao", "O@": "ao",
    "o@": "ao", "O": "ao",
    "E": "eh", "e@": "eh", "e": "eh", "e:": "ey", "eI": "ey", "3": "er", "3:": "er", "VR": "er", "IR": "er",
    "@": "ax", "@-": "ax", "@2": "ax", "@5": "ax", "@L": "ax", "V": "ah",
    "I": "ih", "I#": "ih", "I2": "ih", "i": "iy", "i:": "iy", "i@": "iy", "i@3": "iy",
    "aI": "ay", "aI2": "ay", "aI3": "ay", "aI@": "ay", "aU": "aw", "OI": "oy", "oU": "ow", "o": "ow", "o:": "ow",
    "U": "uh", "U@": "uh", "u": "uw", "u:": "uw",
    "b": "b", "d": "d", "f": "f", "g": "g", "h": "hh", "j": "y", "k": "k", "l": "l", "m": "m", "n": "n", "n-": "n",
    "N": "ng",
    "p": "p", "r": "r", "r-": "r", "s": "s", "t": "t", "t#": "t", "t2": "t", "t[": "t", "?": "t", "v": "v", "w": "w",
    "w#": "w", "z": "z",
    "D": "dh", "T": "th", "S": "sh", "Z": "zh", "dZ": "jh", "tS": "ch",
}  # fmt: skip
"""espeak-ng's mnemonics, as its English voices use them. A glottal stop stands for the t it replaces."""

LETTERS = {
    "a": "ae aa ah ao aw ax ay eh er ey", "b": "b", "c": "k s ch", "d": "d", "e": "eh ih iy er ey ay ax", "f": "f",
    "g": "g jh", "h": "hh aw ao ah aa ae ih iy eh er", "i": "ih iy ay er", "j": "jh", "k": "k n", "l": "l", "m": "m",
    "n": "n",
    "o": "aa ah ao aw ow uh uw w ax er", "p": "p", "q": "k", "r": "r", "s": "s sh", "t": "t", "u": "ah uh uw y ax",
    "v": "v", "w": "w", "x": "z eh", "y": "y", "z": "z", "th": "dh th", "sh": "sh", "ch": "ch k sh", "wh": "w hh",
    "kn": "n", "wr": "r",
}  # fmt: skip
"""Phones that a word with these first letters may begin with."""


def label(name: str, engine: str) -> str:
    """The phone of `PHONES` nearest to what an engine ('flite' or 'espeak') calls one; unheard-of names are "ax"."""
    if engine == "flite":
        name = FLITE.get(name, name)
        return name if name in _KNOWN else "ax"
    while name not in ESPEAK and name:  # a mnemonic is a sound and then marks of its variety
        name = name[:-1]
    return ESPEAK[name] if name else "ax"


def sounds_like(phone: str, word: str) -> bool:
    """Whether a written word may begin with this phone."""
    return phone in (LETTERS.get(word[:2]) or LETTERS.get(word[:1], "")).split()


_KNOWN = frozenset(PHONES)
