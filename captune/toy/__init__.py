"""The embedded default: drawn scenes laid out as Flickr30k, and a tiny pretrained MiniGPT-4 that can look at them.

scenes.py      what is in a scene: typed records sampled from a seed
pen.py         an outlined pen in hundredths of the picture's width
people.py      men, women, boys and girls in action
figures.py     animals, vehicles, houses, trees, sun, moon and clouds
drawing.py     the picture of a scene
captions.py    five captions of a scene, and the terse notes of pretraining
agreement.py   whether a caption names the right things
flickr30k.py   all of it in the exact layout of Flickr30k
settings.py    what `captune demo` runs with

pretrained/    the checkpoint, loaded as the model `toy`
pretrain.py    the script that made it, lesson by lesson
lessons.py     what is learnt in pretraining
field_codes.py records as vectors, where seeing and speaking meet
vocabulary.py  the SentencePiece vocabulary
tiny_model.py  the dimensions of the model
"""

from __future__ import annotations

from captune.toy.flickr30k import Flickr30kFolder, ToyRow, plan_rows, write_flickr30k
from captune.toy.settings import TOY_SETTINGS

__all__ = ["TOY_SETTINGS", "Flickr30kFolder", "ToyRow", "plan_rows", "write_flickr30k"]
