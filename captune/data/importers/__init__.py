"""Importers of caption files: each is a generator that knows one format and yields a `Row` or an `Issue` an image."""
