"""Which words keep their full stop, which are two tokens, which begin a sentence: all observed, none copied."""

from __future__ import annotations

__all__ = ["ENDING_ABBREVIATIONS", "FIRST_WORDS", "INNER_ABBREVIATIONS", "NUMBER_ABBREVIATIONS", "SPLIT_WORDS"]

# A small letter is either case, a capital is a capital, and what stands after "=" is that very letter.

#: The full stop is theirs and never ends a sentence.
INNER_ABBREVIATIONS = """
    cf dr ft lt mr ms mt ph st vs wm
    adj adm adv ave brig capt cie cmdr col cpl dept det drs elec ens gen gov govs hon insp invt jos maj mme mrs
    alex asst atty assoc attys comdr lieut messrs mlle msgr natl pfc pres prof profs pvt rep reps rev
    sen sens sfc sgt spc ste supt supts treas m=fg m=tg
""".split()

#: Before a capital letter and at the end the full stop is theirs and ends the sentence too.
ENDING_ABBREVIATIONS = """
    al co ct ga jr ky md mo rd rt sq sr va vt
    ala apr aug bhd cos dak dec esq est etc ext feb fla fri inc ind jan jul jun kan ltd mar mon neb nev nov oct plc
    sep seq sys tel thu tue wed wis wyo
    ariz assn bldg blvd bros calif colo conn corp intl kans mich minn mont okla penn sept tenn thurs tues univ wisc
    Az La Pa Ark Del Ill Ore Tex Mass Miss Wash
    pt=e pt=y ppt=e ppt=y pt=es pt=ys ppt=es ppt=ys ed.d ph.d
""".split()

#: They keep their full stop before a number.
NUMBER_ABBREVIATIONS = "ca no op pp art fig nos figs prop".split()

#: One word, two tokens: the length of the first.
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2}

#: After "p. " and "U.S. " these begin a new sentence.
FIRST_WORDS = """
    A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our
    She Since So Some Such That The Their Then There These They This We What When While Yet You
""".split()
