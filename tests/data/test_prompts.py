"""pytest tests/data/test_prompts.py"""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.config import UserError, load
from r1zero.data import encoders, store
from r1zero.data.prepare import DataConfig, prepare
from r1zero.data.prompts import PromptOrder, PromptSet
from r1zero.data.tokenizer import digest


@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
    takes=st.lists(st.integers(0, 50), max_size=12),
)
@settings(deadline=None)
def test_every_row_is_taken_exactly_once_an_epoch_whatever_the_batches(
    count: int, seed: int, shuffle: bool, takes: list[int]
) -> None:
    order = PromptOrder(count, seed, shuffle)
    rows: list[int] = []
    for n in takes:
        taken = order.take(n)
        assert len(taken) == n
        rows += taken
    for start in range(0, len(rows), count):
        epoch = rows[start : start + count]
        assert set(Counter(epoch).values()) <= {1} and set(epoch) <= set(range(count))
        assert len(epoch) < count or sorted(epoch) == list(range(count))


@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
    before=st.lists(st.integers(0, 50), max_size=6),
    after=st.integers(1, 120),
)
@settings(deadline=None)
def test_a_resumed_order_goes_on_as_the_uninterrupted_one(
    count: int, seed: int, shuffle: bool, before: list[int], after: int
) -> None:
    whole = PromptOrder(count, seed, shuffle)
    for n in before:
        whole.take(n)
    resumed = PromptOrder(count, seed, shuffle)
    resumed.load(json.loads(json.dumps(whole.state())))
    assert resumed.take(after) == whole.take(after) and resumed.state() == whole.state()


def test_each_epoch_has_an_order_of_its_own_and_each_seed_too() -> None:
    order = PromptOrder(50, 7, True)
    epochs = [order.take(50) for _ in range(20)]
    assert len(set(map(tuple, epochs))) == 20
    assert PromptOrder(50, 8, True).take(50) != epochs[0] == PromptOrder(50, 7, True).take(50)


def test_the_order_of_a_seed_is_the_same_for_ever() -> None:
    """Written down once: a change here would break the resuming of every run there is."""
    assert PromptOrder(8, 1, True).take(16) == FIRST_EPOCHS_OF_SEED_1


FIRST_EPOCHS_OF_SEED_1 = [3, 1, 7, 2, 5, 4, 6, 0, 6, 4, 7, 1, 5, 3, 0, 2]


def test_without_shuffling_the_order_is_the_files() -> None:
    assert PromptOrder(3, 1, False).take(8) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_shuffling_is_uniform() -> None:
    """Row 0 of 4 comes first in a quarter of 4,000 epochs; the bound is five standard deviations."""
    order = PromptOrder(4, 3, True)
    first = Counter(order.take(4)[0] for _ in range(4000))
    assert all(abs(first[row] - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for row in range(4))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": 9}, "has count = 9, but this run has 8; resume with the same data"),
        ({"seed": 2}, "has seed = 2, but this run has 1"),
        ({"shuffle": False}, "has shuffle = False, but this run has True"),
        ({"position": 9}, "is corrupt: epoch 0, position 9 of 8"),
        ({"epoch": None}, "is corrupt"),
        ({"position": -1}, "is corrupt"),
    ],
)
def test_a_state_of_other_data_is_refused(change: dict, sentence: str) -> None:
    order = PromptOrder(8, 1, True)
    with pytest.raises(UserError, match=sentence):
        order.load(order.state() | change)


def test_no_prompt_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="contains no prompts; run preprocess.py on data that does"):
        PromptOrder(0, 1, True)


@pytest.fixture(scope="module")
def original(tokenizer_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows, more than one Arrow batch."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"problem": str(n), "answer": str(n)}) + "\n" for n in range(3000))
    )
    overrides = [f"input={folder / 'rows.jsonl'}", f"tokenizer={tokenizer_path}", f"output={folder / 'prompts'}"]
    prepare(load("configs/data/quickstart.toml", overrides, DataConfig), lambda file, share, counts: None)
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> str:
    """A copy to damage, made from tmp_path/rows.jsonl."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    meta = tmp_path / "prompts" / store.META
    meta.write_text(meta.read_text().replace(str(original), str(tmp_path)))
    return str(tmp_path / "prompts")


def test_a_row_is_the_one_asked_for(made: str) -> None:
    prompts = PromptSet.open(made)
    assert len(prompts) == 3000
    for i in (0, 1023, 1024, 2999):
        assert (prompts[i].row, prompts[i].label, prompts[i].text) == (i, str(i), f"Question: {i}=?\nAssistant:\n")
    assert isinstance(prompts[0].token_ids, tuple) and prompts.additional(0) == {}


def test_data_of_another_tokenizer_is_refused_with_both_digests(made: str, tokenizer_path: str) -> None:
    prompts, mine = PromptSet.open(made), digest(tokenizer_path)
    prompts.check(mine)
    with pytest.raises(UserError) as caught:
        prompts.check("0" * 64)
    assert mine[:12] in str(caught.value) and "0" * 12 in str(caught.value) and "run preprocess.py" in str(caught.value)


def test_data_with_a_prompt_over_the_engines_limit_is_refused_with_both_lengths(made: str) -> None:
    prompts = PromptSet.open(made)
    longest = max(len(prompts[i].token_ids) for i in range(len(prompts)))
    prompts.check_length(longest)
    with pytest.raises(
        UserError, match=f"has {longest} tokens, but rollout.max_prompt_tokens is {longest - 1}; raise it"
    ):
        prompts.check_length(longest - 1)


def test_data_of_a_source_that_changed_is_refused_and_of_one_that_is_gone_is_not(
    made: str, tokenizer_path: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "1", "answer": "1"}\n')
    with pytest.raises(UserError, match="rows.jsonl with sha256 .* run preprocess.py again"):
        PromptSet.open(made).check(digest(tokenizer_path))
    (tmp_path / "rows.jsonl").unlink()
    PromptSet.open(made).check(digest(tokenizer_path))


def test_data_of_a_template_that_changed_is_refused(made: str, tokenizer_path: str, tmp_path: Path) -> None:
    meta = json.loads((Path(made) / store.META).read_text())
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"name": "quickstart", "format_user": {"slots": ["Q: {{content}}\n"]}}]))
    meta["template"]["path"] = str(own)
    (Path(made) / store.META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="template quickstart with digest"):
        PromptSet.open(made).check(digest(tokenizer_path))


@pytest.mark.parametrize("thinking", [False, True])
def test_data_with_or_without_thinking_passes_until_its_template_changes(
    made: str, tokenizer_path: str, tmp_path: Path, thinking: bool
) -> None:
    own, entry = tmp_path / "own.json", {"name": "own", "template_class": "ReasoningTemplate", "efficient_eos": True}
    own.write_text(json.dumps([entry]))
    encoder = encoders.find(tokenizer_path, encoders.How(str(own), "own", thinking, {}, False))
    meta = json.loads((Path(made) / store.META).read_text())
    meta["template"] = {"path": str(own), "name": "own", "digest": encoder.digest}
    (Path(made) / store.META).write_text(json.dumps(meta))
    PromptSet.open(made).check(digest(tokenizer_path))
    own.write_text(json.dumps([entry | {"default_system": "S"}]))
    with pytest.raises(UserError, match="template own with digest"):
        PromptSet.open(made).check(digest(tokenizer_path))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999])
@pytest.mark.parametrize("name", [store.PROMPTS, store.META])
def test_a_torn_folder_is_refused(name: str, share: float, made: str) -> None:
    file = Path(made) / name
    content = file.read_bytes()
    file.write_bytes(content[: int(share * (len(content) - 2))])
    with pytest.raises(UserError, match="corrupt"):
        PromptSet.open(made)


def test_a_missing_or_foreign_folder_is_refused(made: str, tmp_path: Path) -> None:
    for folder, why in (
        ("none", "No such file"),
        ("rows.jsonl", "Not a directory"),
        ("x" * 5000, "File name too long"),
    ):
        with pytest.raises(UserError, match=f"{why}.*data.path must be a folder that preprocess.py wrote"):
            PromptSet.open(str(tmp_path / folder))
    with pytest.raises(UserError, match="data.path is not set"):
        PromptSet.open("")
    file = Path(made) / store.META
    meta = json.loads(file.read_text())
    for changed, sentence in (
        ({"format": "r1zero prompts 0"}, "its format is 'r1zero prompts 0'"),
        ({"rows": "3000"}, "rows = '3000' must be of type int"),
        ({"rows": 2999}, "has 3000 rows"),
        ({"stop_token_ids": None}, "stop_token_ids = None must be of type list"),
        ({"stop_token_ids": [1, "2"]}, "stop_token_ids = '2' must be of type int"),
        ({"tokenizer": {}}, "tokenizer: path = None must be of type str"),
        ({"tokenizer": {"path": "x", "digest": None}}, "tokenizer: digest = None must be of type str"),
        ({"template": {"path": "x", "name": 1, "digest": ""}}, "template: name = 1 must be of type str"),
        ({"sources": ["x"]}, "sources: path = 'x' must be of type str"),
        ({"sources": [{"path": "x", "sha256": 1}]}, "sources: sha256 = 1 must be of type str"),
    ):
        file.write_text(json.dumps(meta | changed))
        with pytest.raises(UserError, match=sentence):
            PromptSet.open(made)
    file.write_text("[]")
    with pytest.raises(UserError, match="its format is None"):
        PromptSet.open(made)
    (Path(made) / store.PROMPTS).unlink()
    file.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="has 0 bytes"):
        PromptSet.open(made)
