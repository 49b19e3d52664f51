"""Vectors for memories, computed outside of any transaction, with many texts in one call of the model.

If the model fails, or returns invalid vectors, items and messages are found by their words, and a later call
computes their vectors. The name of the model is stored; vectors of different models are never compared.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings

from session_middleware.errors import EmbeddingFailed, InvalidSettings
from session_middleware.memory.ops import texts_at
from session_middleware.storage.memory_types import ToEmbed, Vectors
from session_middleware.storage.protocol import Storage

_AT_ONCE = 64  # items or messages in one call of the model
_LONGEST = 8_000  # characters of a text; the rest is not embedded
_log = logging.getLogger("session_middleware")
R = TypeVar("R")


class EmbeddingModel(NamedTuple):
    """What LangGraph's `IndexConfig` names."""

    name: str
    dimensions: int
    fields: tuple[str, ...]  # paths in the value of an item
    embeddings: Embeddings


def model_of(config: Mapping[str, Any]) -> EmbeddingModel:
    """The model of a config.

    Raises:
        InvalidSettings: the config lacks the model or the dimensions, or numpy is not installed.
    """
    dimensions = _checked(config)
    embeddings = _embeddings(config["embed"])
    name = str(config.get("name") or _name_of(config["embed"], embeddings))
    return EmbeddingModel(name, dimensions, tuple(config.get("fields") or ("$",)), embeddings)


class Embedder:
    """A model, and its stored vectors."""

    def __init__(self, storage: Storage, model: EmbeddingModel) -> None:
        self._storage = storage
        self.name, self._dimensions, self._fields, self._embeddings = model
        self._warned: set[str] = set()

    def is_current(self) -> bool:
        """Whether the stored vectors are of this model; those of another model stay until `rebuild`."""
        stored = self._storage.set_vector_model(self.name, self._dimensions)
        if stored == (self.name, self._dimensions):
            return True
        self._warn(
            f"the vectors in the database are of the model {stored[0]!r} with {stored[1]} dimensions, and index= names "
            f"{self.name!r} with {self._dimensions}; memories are found by words only until "
            "sessions.index_memory(rebuild=True) computes new ones"
        )
        return False

    def rebuild(self) -> int:
        """Compute all vectors again; returns how many documents have them.

        Raises:
            EmbeddingFailed: the model failed. If it failed at the start, the old vectors are kept; otherwise
                `catch_up` computes the missing ones.
        """
        self._embed(["test"])
        self._storage.set_vector_model(self.name, self._dimensions, replace=True)
        return sum(self._batches(messages=True))

    def query(self, text: str) -> list[float] | None:
        """The vector of a query; ``None`` without stored vectors of this model, or when the model fails."""
        if not text or not self.is_current():
            return None
        try:
            return self._call(lambda: self._valid(self._embeddings.embed_query(text[:_LONGEST])))
        except EmbeddingFailed as error:
            self._warn(f"{error}; memories are found by words until it works again")
            return None

    def catch_up(self, *, messages: bool, limit: int | None = None) -> int:
        """Compute missing vectors until none is missing or the model fails; returns how many documents got theirs."""
        done = 0
        try:
            for count in self._batches(messages=messages) if self.is_current() else ():
                done += count
                if limit is not None and done >= limit:
                    break
        except EmbeddingFailed as error:
            self._warn(f"{error}; memories are found by words until it works again")
        return done

    def _batches(self, *, messages: bool) -> Iterator[int]:
        """Compute missing vectors; yields how many documents of each batch got theirs."""
        while waiting := self._storage.list_to_embed(_AT_ONCE, messages=messages):
            texts = [self._texts(each) for each in waiting]
            flat = list(dict.fromkeys(chain.from_iterable(texts)))
            made = dict(zip(flat, self._embed(flat) if flat else [], strict=True))
            self._storage.put_vectors(
                [Vectors(each, [made[text] for text in own]) for each, own in zip(waiting, texts, strict=True)]
            )
            yield len(waiting)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        made = self._call(lambda: [self._valid(vector) for vector in self._embeddings.embed_documents(texts)])
        if len(made) != len(texts):
            raise EmbeddingFailed(self.name, f"it returned {len(made)} vectors for {len(texts)} texts")
        return made

    def _texts(self, waiting: ToEmbed) -> list[str]:
        if waiting.item is None:
            return [text[:_LONGEST] for text in waiting.texts]
        if waiting.item.paths is not None and not waiting.item.paths:
            return [waiting.item.searched_text[:_LONGEST]]
        paths = self._fields if waiting.item.paths is None else waiting.item.paths
        found = texts_at(waiting.item.value, paths)
        return [text.encode(errors="replace").decode()[:_LONGEST] for text in found]

    def _valid(self, vector: Sequence[float]) -> list[float]:
        found = [float(number) for number in vector]
        if len(found) != self._dimensions:
            raise EmbeddingFailed(
                self.name, f"its vectors have {len(found)} dimensions, and index= has dims={self._dimensions}"
            )
        if not all(map(math.isfinite, found)):
            raise EmbeddingFailed(self.name, "a vector contains NaN or infinity")
        return found

    def _call(self, call: Callable[[], R]) -> R:
        try:
            return call()
        except EmbeddingFailed:
            raise
        except Exception as error:  # a model may raise anything
            raise EmbeddingFailed(self.name, f"it failed ({type(error).__name__}: {error})") from error

    def _warn(self, warning: str) -> None:
        """Log each warning once."""
        if warning not in self._warned:
            self._warned.add(warning)
            _log.warning(warning)


def _checked(config: Mapping[str, Any]) -> int:
    """The dimensions of a config."""
    dimensions = config.get("dims")
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1:
        raise InvalidSettings([f"index: dims is {dimensions!r}; give the number of dimensions of the model's vectors"])
    embed, fields = config.get("embed"), config.get("fields") or []
    if not isinstance(embed, (Embeddings, str)) and not callable(embed):
        raise InvalidSettings([f"index: embed is {reprlib.repr(embed)}; {_MODELS}"])
    if not isinstance(fields, (list, tuple)) or not all(isinstance(field, str) for field in fields):
        raise InvalidSettings([f"index: fields is {reprlib.repr(fields)}; give a list of paths"])
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise InvalidSettings(["index: vectors need numpy; pip install 'session-middleware[vectors]'"]) from error
    return dimensions


_MODELS = "give a LangChain Embeddings, a function or 'provider:model'"


def _embeddings(given: Any) -> Embeddings:
    try:
        return ensure_embeddings(given)
    except (ImportError, ValueError) as error:  # LangChain's, for an unknown provider or one that is not installed
        raise InvalidSettings([f"index: embed={reprlib.repr(given)}: {error}; {_MODELS}"]) from error


def _name_of(given: Any, embeddings: Embeddings) -> str:
    """The identity of a model: its name, or its class and the name of its model."""
    if isinstance(given, str):
        return given
    kind = type(given) if isinstance(given, Embeddings) else given
    name = f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', type(given).__qualname__)}"
    model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
    return f"{name}:{model}" if isinstance(model, str) else name
