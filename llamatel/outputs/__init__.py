"""Files that llamatel appends to, and messages that are logged once."""
