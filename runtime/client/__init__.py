"""A client of ``esm2-run serve``: proteins in, NumPy out, in requests of a size that suits it.

``client.py`` is what users call, ``parts.py`` says which proteins share a request,
``connection.py`` sends one until it is answered, ``answers.py`` reads what came.
"""
