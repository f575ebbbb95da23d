"""One module per engine library, each with ``reason_against(entry, device)`` and ``load(...)``."""
