"""The leak guard: whether images that a model is evaluated on were among those it was trained on.

fingerprints.py   a digest of a file's bytes, perceptual hashes of views of its picture
store.py          fingerprints kept between runs
hamming.py        all pairs of hashes that differ in few bits
alignment.py      one picture laid over another
pixels.py         whether two files show the same picture
guard.py          the three questions in one call
manifests.py      the same between manifests
groups.py         the same within one data set
"""

from __future__ import annotations

from captune.data.leaks.guard import ImageFile, Leak, LeakReport, find_leaks

__all__ = ["ImageFile", "Leak", "LeakReport", "find_leaks"]
