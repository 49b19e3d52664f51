"""Vectors for memories: made outside of any transaction, many texts in one call of the model.

A model that fails, or answers with something that is no vector, takes nothing with it: items and
messages stay as they are, are found by their words, and wait for their vectors until a later call.
Which model the stored vectors are of is stored with them; those of another are never compared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings

from session_middleware.errors import EmbeddingFailed, InvalidSettings
from session_middleware.memory.values import texts_at
from session_middleware.storage.memory_types import ToEmbed, Vectors
from session_middleware.storage.protocol import Storage

_AT_ONCE = 64  # items or messages whose texts go to the model in one call
_LONGEST = 8_000  # characters of a text that the model is given
_log = logging.getLogger("session_middleware")
R = TypeVar("R")


class Embedder:
    """A model of LangGraph's `IndexConfig`, and what is stored of it.

    Raises:
        InvalidSettings: the config has no model or no number of dimensions, or numpy is not there.
    """

    def __init__(self, storage: Storage, config: Mapping[str, Any]) -> None:
        self._storage = storage
        self._dimensions = _checked(config)
        self._fields = tuple(config.get("fields") or ("$",))
        self._embeddings: Embeddings = ensure_embeddings(config["embed"])
        self._told: set[str] = set()
        self.name = str(config.get("name") or _name_of(config["embed"], self._embeddings))

    def is_current(self) -> bool:
        """Whether the stored vectors are of this model; those of another are left alone until `rebuild`."""
        stored = self._storage.set_vector_model(self.name, self._dimensions)
        if stored == (self.name, self._dimensions):
            return True
        self._tell(
            f"the vectors in the database are of the model {stored[0]!r} with {stored[1]} dimensions, and index= names "
            f"{self.name!r} with {self._dimensions}; memories are found by words only until "
            "sessions.index_memory(rebuild=True) has made new ones"
        )
        return False

    def rebuild(self) -> int:
        """Make all vectors anew; how many texts got theirs. Those there are stay if the model does not answer.

        Raises:
            EmbeddingFailed: it does not; or it has stopped to, and the rest waits for `catch_up`.
        """
        self._insist(lambda: self._valid(*self._embeddings.embed_documents(["Is anybody there?"])))
        self._storage.set_vector_model(self.name, self._dimensions, replace=True)
        return self._catch_up(self._insist, messages=True, limit=None)

    def query(self, text: str) -> list[float] | None:
        """The vector of a query; ``None`` when there are none to compare it with, or the model fails."""
        if not text or not self.is_current():
            return None
        return self._ask(lambda: self._valid(self._embeddings.embed_query(text[:_LONGEST])))

    def catch_up(self, *, messages: bool, limit: int | None = None) -> int:
        """Make the vectors that are waited for; how many texts got theirs. Ends when the model fails."""
        return self._catch_up(self._ask, messages=messages, limit=limit) if self.is_current() else 0

    def _catch_up(self, ask: Callable[..., Any], *, messages: bool, limit: int | None) -> int:
        done = 0
        while limit is None or done < limit:
            waiting = self._storage.list_to_embed(_AT_ONCE, messages=messages)
            made = ask(partial(self._vectors, waiting)) if waiting else None
            if not made:
                break
            self._storage.put_vectors(made)
            done += len(made)
        return done

    def _vectors(self, waiting: Sequence[ToEmbed]) -> list[Vectors]:
        texts = [self._texts(each) for each in waiting]
        flat = list(dict.fromkeys(text for those in texts for text in those))
        made = self._embeddings.embed_documents(flat) if flat else []
        if len(made) != len(flat):
            raise EmbeddingFailed(self.name, f"it was given {len(flat)} texts and answered with {len(made)} vectors")
        vectors = dict(zip(flat, map(self._valid, made), strict=True))
        return [Vectors(each, [vectors[text] for text in those]) for each, those in zip(waiting, texts, strict=True)]

    def _texts(self, waiting: ToEmbed) -> list[str]:
        if waiting.item is None:
            return [text[:_LONGEST] for text in waiting.texts]
        if waiting.item.paths is not None and not waiting.item.paths:
            return [(waiting.item.text or "")[:_LONGEST]]
        paths = self._fields if waiting.item.paths is None else waiting.item.paths
        found = texts_at(waiting.item.value, paths)
        return [text.encode(errors="replace").decode()[:_LONGEST] for text in found]

    def _valid(self, vector: Sequence[float]) -> list[float]:
        found = [float(number) for number in vector]
        if len(found) != self._dimensions:
            raise EmbeddingFailed(
                self.name, f"its vectors have {len(found)} dimensions, and index= says {self._dimensions}"
            )
        if not all(map(math.isfinite, found)):
            raise EmbeddingFailed(self.name, "a vector of it holds NaN or infinity")
        return found

    def _ask(self, call: Callable[[], R]) -> R | None:
        try:
            return call()
        except Exception as error:  # noqa: BLE001  # a user's model raises what it likes
            self._tell(
                f"the embedding model {self.name!r} failed ({type(error).__name__}: {error}); memories are found by "
                "words, and get their vectors once it answers"
            )
            return None

    def _insist(self, call: Callable[[], R]) -> R:
        try:
            return call()
        except EmbeddingFailed:
            raise
        except Exception as error:
            raise EmbeddingFailed(self.name, f"it failed ({type(error).__name__}: {error})") from error

    def _tell(self, warning: str) -> None:
        """Each warning once."""
        if warning not in self._told:
            self._told.add(warning)
            _log.warning(warning)


def _checked(config: Mapping[str, Any]) -> int:
    """The number of dimensions a config names."""
    dimensions = config.get("dims")
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1:
        raise InvalidSettings([f"index: dims is {dimensions!r}; give the number of dimensions of the model's vectors"])
    if config.get("embed") is None:
        raise InvalidSettings(["index: embed is missing; give a LangChain Embeddings, a function or 'provider:model'"])
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise InvalidSettings(["index: vectors need numpy; pip install 'session-middleware[vectors]'"]) from error
    return dimensions


def _name_of(given: Any, embeddings: Embeddings) -> str:
    """What tells one model from another: the given name, or the class and the model it names."""
    if isinstance(given, str):
        return given
    kind = type(given) if isinstance(given, Embeddings) else given
    name = f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', type(given).__qualname__)}"
    model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
    return f"{name}:{model}" if isinstance(model, str) else name
