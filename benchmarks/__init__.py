"""Every engine, eager fair-esm and the machine's limit, measured in one run.

``python -m benchmarks ARTIFACT``. ``workload`` says what is run, ``worker`` is one contender in a
process of its own, ``limit`` is what the machine could do, ``environment`` installs the runtime
afresh, ``__main__`` puts it together.
"""
