"""Other ways to run ESM-2, each in an environment of its own.

``<peer>.txt`` pins what is installed, ``<peer>.py`` loads the model as the peer's users do::

    load(folder, threads) -> run(input_ids [N, L] int64, attention_mask [N, L] int64) -> [N, L, E]

A peer that packs as the engines here do has this instead, on token ids of each protein::

    load_packed(folder, threads) -> .run([[L] int32, ...]), .rows(the same) -> [T, E], .instructions

``serve.py`` runs one of them and answers requests; it needs the standard library and NumPy alone.
"""
