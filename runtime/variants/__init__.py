"""What a masked language model says of proteins: variant scores, perplexity, log-probabilities.

``notation`` reads ``A12G:S45T`` against its wild type, ``conventions`` says what is run of a
variant and what comes of it, ``masking`` makes masked copies and takes log-probabilities, ``tasks``
are what the runner is given. ``sources`` reads files, ``survey`` looks at all of them first,
``jobs`` says what a command runs and ``run`` writes it; ``of_model`` is the same for Python.
"""
