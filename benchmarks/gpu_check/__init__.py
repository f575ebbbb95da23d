"""``make gpu-check``: every engine of a GPU proven and measured on one machine, without a network.

``plan`` says what is done and in which order, ``engines`` which engines a device has and why one
cannot run, ``packages`` what must be importable. ``schedule`` runs each job in a process of its own
(``worker``), within the time that there is: ``matrix_rate`` measures the card, ``attention`` judges
the op's kernels, ``gate`` builds an engine and shows it to the parity gate, ``synchronisation``
looks for waits of the host, ``graphs`` at CUDA graphs, ``throughput`` measures ``contenders`` as
``benchmarks.measure`` measures those of a CPU. ``machine`` is the card, ``results`` is what was
found, ``summary`` what follows from it, ``terminal`` and ``html`` show it. On a machine without a
GPU ``--device cpu`` rehearses all of it.
"""
