"""Programs for the development of captune; not part of the package."""
