"""Plain values as text and as HTML."""
