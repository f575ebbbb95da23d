"""That the gate can fail: planted faults, each of which must be rejected."""
