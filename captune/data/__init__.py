"""Samples, the JSON Lines manifest, importers of caption files, and image decoding."""
