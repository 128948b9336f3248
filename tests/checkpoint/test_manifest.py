"""A folder is complete, or an error says what is wrong with it.

python -m pytest tests/checkpoint/test_manifest.py
"""

import hashlib
import os

import pytest

from r1zero.checkpoint import manifest
from r1zero.checkpoint.manifest import CorruptError, HashedFile


@pytest.fixture
def folder(tmp_path):
    """Two segments in one file, and another file."""
    with HashedFile(tmp_path / "a") as file:
        file.write(b"first")
        file.segment()
        file.write(memoryview(b"sec"))
        file.write(b"ond")
    (tmp_path / "b").write_bytes(b"third")
    manifest.seal(tmp_path, {"iteration": 7}, {"a": file.segments, "b": manifest.adopt(tmp_path / "b")})
    return tmp_path


def check(folder):
    for name, segments in manifest.read(folder)["files"].items():
        manifest.check(folder, name, segments)


def test_segments_have_the_lengths_and_hashes_of_their_bytes(folder):
    body = manifest.read(folder)
    expected = [[len(b), hashlib.sha256(b).hexdigest()] for b in (b"first", b"second")]
    assert body["files"]["a"] == expected and body["iteration"] == 7
    check(folder)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: os.truncate(f / "a", 10), "a has 10 bytes of 11"),
        (lambda f: (f / "b").write_bytes(b"thirdX"), "b has 6 bytes of 5"),
        (
            lambda f: (f / "a").write_bytes(b"firstsecoNd"),
            r"a has other content than was written \(sha256 of bytes 5 to 11\)",
        ),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: os.truncate(f / "manifest.json", 40), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (
            lambda f: (f / "manifest.json").write_text(
                (f / "manifest.json").read_text().replace('"iteration": 7', '"iteration": 8')
            ),
            "manifest.json was altered",
        ),
    ],
)
def test_any_damage_is_named(folder, damage, complaint):
    damage(folder)
    with pytest.raises(CorruptError, match=complaint):
        check(folder)
