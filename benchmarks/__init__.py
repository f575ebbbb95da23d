"""Every engine, the peers and the machine's limit, measured in one run, all side by side.

``python -m benchmarks ARTIFACT...`` runs a plan on CPUs, ``python -m benchmarks.gpu_check`` on a
card: ``plans`` says what is measured, ``workload`` on which proteins, ``contenders`` who. Each
contender is a process (``processes``) that answers requests: ``engine_worker`` an engine of an
artifact, ``peers/`` somebody else's way to run ESM-2, installed by ``environments`` and fed from
``checkpoints``. ``measure`` lets them take turns, ``correctness`` judges their answers after each
timing, ``limit`` is what the machine could do, ``growth`` streams through the runner. ``results``
is what was measured, ``summary`` what follows from it, ``report/`` shows it.

``fresh_install`` stands alone: the runtime in an empty environment.
"""
