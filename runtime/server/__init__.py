"""What esm2-run serve does: proteins of many requests in shared packs, answered over HTTP.

The data's path: ``routes`` read a request, ``work.py`` says what is to be run for it,
``scheduler.py`` cuts packs from ``fair_queue.py`` and runs them on the engine's threads,
``answers.py`` writes what comes of it.
"""
