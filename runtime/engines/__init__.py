"""One module per engine library, each with ``missing_library()`` and ``load(...)``."""
