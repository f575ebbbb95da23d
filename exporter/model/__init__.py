"""ESM-2: where its weights come from, fair-esm's reference, and the packed forward."""
