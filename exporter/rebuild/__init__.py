"""Whether an artifact, built again, is the same bytes."""
