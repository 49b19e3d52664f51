"""A scripted embedding model: texts about the same subject point the same way."""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.embeddings import Embeddings

SUBJECTS = (("dog", "puppy", "hound", "pet"), ("car", "vehicle", "truck", "drive"), ("soup", "dinner", "meal", "eat"))


class SubjectEmbeddings(Embeddings):
    """One dimension a subject, and a little of another for what is about none of them."""

    def __init__(
        self, dimensions: int = 4, model: str = "subjects-1", subjects: Sequence[Sequence[str]] = SUBJECTS
    ) -> None:
        self.dimensions = dimensions
        self.subjects = subjects
        self.model = model
        self.calls: list[list[str]] = []
        self.queries: list[str] = []
        self.fails: Exception | None = None
        self.answers: Sequence[Sequence[float]] | None = None  # in place of what it would say

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(texts)
        if self.fails is not None:
            raise self.fails
        return [list(vector) for vector in self.answers] if self.answers else [self._vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.queries.append(text)
        if self.fails is not None:
            raise self.fails
        return self._vector(text)

    def _vector(self, text: str) -> list[float]:
        words = re.findall(r"[a-z]+", text.lower())
        found = [float(sum(word in subject for word in words)) for subject in self.subjects]
        return [*found, 0.1, *[0.0] * (self.dimensions - 4)]
