"""One module per format, with ``unsupported_reasons``, ``load`` and ``library``.

``unsupported_reasons(manifest, device, settings)`` says in sentences why the engine cannot run so
on ``device`` (``cpu`` or ``cuda``). ``load(folder, manifest, device, settings)`` is called where it
has nothing to say; whatever it raises reaches the user as EngineError.
"""
