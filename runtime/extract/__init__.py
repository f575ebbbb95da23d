"""``esm2-run extract``: what fair-esm's ``scripts/extract.py`` writes, with an engine.

``labels`` gives each record the name of its file, ``wanted`` says which layers and what of them,
``pt_files`` writes, ``run`` brings them together, ``command`` takes the script's flags.
"""
