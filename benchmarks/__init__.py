"""Each script answers one question and ends with one JSON line."""
