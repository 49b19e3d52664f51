"""Tokens, stems, dates and BM25: pure functions of text search."""
