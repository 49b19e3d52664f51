"""The port to a database, and the engines behind it."""
