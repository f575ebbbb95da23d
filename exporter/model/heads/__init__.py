"""What was trained on top of ESM-2: a file for each kind of head."""
