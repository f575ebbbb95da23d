"""Engine formats: a folder each, described by ``format.Format``, listed in ``table``."""
