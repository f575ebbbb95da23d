"""Where weights come from: one file a source, each giving ``Weights`` under fair-esm's names."""
