"""The operations of `Storage` as SQL, shared by the engines."""
