"""What an artifact was built from, by what and with what, in files of it."""
