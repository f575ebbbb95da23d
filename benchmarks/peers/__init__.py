"""Other ways to run ESM-2, each in an environment of its own.

``<peer>.txt`` pins what is installed, ``<peer>.py`` loads the model as the peer's users do::

    load(folder, threads) -> run(input_ids [N, L] int64, attention_mask [N, L] int64) -> [N, L, E]

``serve.py`` runs one of them and answers requests; it needs the standard library and NumPy alone.
"""
