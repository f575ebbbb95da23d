"""A run for people: ``terminal`` for a screen, ``document`` for docs/, ``plots`` for both."""
