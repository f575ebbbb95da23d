"""What is allowed: distances, budgets with their reasons, verdicts."""
