"""Input: files of proteins to records, and records to tokens."""
