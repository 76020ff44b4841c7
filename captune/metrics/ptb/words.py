"""Which words keep their full stop, which are two tokens, which begin a sentence: all of it observed.

The lists of abbreviations are complete for words of up to five letters; longer ones were tried from a vocabulary.
"""

from __future__ import annotations

__all__ = [
    "CASE_RULES",
    "ENDING_ABBREVIATIONS",
    "FIRST_WORDS",
    "INNER_ABBREVIATIONS",
    "NUMBER_ABBREVIATIONS",
    "SPLIT_WORDS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: The full stop is theirs and never ends a sentence.
INNER_ABBREVIATIONS = _words("""
    cf dr ft lt mr ms mt ph st vs wm
    adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme mrs mtg pfc pvt rep rev sen sfc sgt spc ste
    alex asst atty brig capt cmdr dept elec govs insp invt mlle msgr natl pres prof reps sens supt
    assoc attys comdr lieut profs supts treas messrs
""")

#: Before a capital letter and at the end the full stop is theirs and ends the sentence as well.
ENDING_ABBREVIATIONS = _words("""
    al az co ct ga jr ky la md mo pa rd rt sq sr va vt
    ala apr ark aug bhd cos dak dec del esq est etc ext feb fla fri ill inc ind jan jul jun kan ltd mar mon neb nev
    nov oct ore plc pte pty sep seq sys tel tex thu tue wed wis wyo
    ariz assn bldg blvd bros colo conn corp intl kans mass mich minn miss mont okla penn ppte ppty ptes ptys sept
    tenn tues univ wash wisc
    calif pptes pptys thurs ed.d ph.d
""")

#: They keep their full stop before a number.
NUMBER_ABBREVIATIONS = _words("ca no op pp art fig nos figs prop")

#: Abbreviations that do not count in every spelling: which letter must be what.
CASE_RULES = {
    **{name: (0, name[0].upper()) for name in _words("az la pa ark del ill ore tex mass miss wash")},
    **{name: (1, name[1]) for name in _words("mfg mtg")},
    **{name: (2, name[2]) for name in _words("pte pty ptes ptys")},
    **{name: (3, name[3]) for name in _words("ppte ppty pptes pptys")},
}

#: One word, two tokens: how long the first is.
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}

#: After "p. " and "U.S. " they begin a new sentence, with a capital and the rest in either case.
FIRST_WORDS = _words("""
    A About According After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now Once One Other
    Our She Since So Some Such That The Their Then There These They This We What When While Yet You
""")
