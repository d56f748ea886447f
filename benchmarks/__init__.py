"""Each script answers one question, tells of its progress, and ends with one JSON line for machines."""
