"""Images and files in a message are stored once, by a hash, and can be put back."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from session_middleware.recording.files import extract_files, restore_files

PICTURE = bytes(range(256))
TEXT = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}},
        {"type": "image", "base64": TEXT, "mime_type": "image/png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": TEXT}},
        {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{TEXT}"}},
    ],
)
def test_a_file_is_the_same_file_however_it_is_given_and_comes_back_as_it_was(block: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "look"}, block]
    kept, (file,) = extract_files(content)
    assert (file.data, len(file.hash)) == (PICTURE, 71)
    assert file.hash in str(kept)
    assert TEXT not in str(kept)
    assert restore_files(kept, {file.hash: file.data}.get) == content


def test_what_is_no_file_stays() -> None:
    content = [{"type": "text", "text": "a" * 5000, "data": "not base64! " * 50}, "words", {"url": "https://x.org"}]
    assert extract_files(content) == (content, [])


def test_a_file_that_is_gone_leaves_its_name() -> None:
    kept, _ = extract_files([{"base64": TEXT}])
    assert restore_files(kept, lambda _: None) == kept
