"""The database: its connections, tables and migrations. No Ray, torch or HTTP."""
