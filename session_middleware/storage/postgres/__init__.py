"""The PostgreSQL engine: what differs from SQLite."""
