"""A prediction's life: its record, where records are kept, and who runs it. No Ray, no torch, no HTTP."""
