"""python -m pytest tests/reward/test_own_rules.py

A rule of the user's own: what its file may be, what it is given, and one sentence for whatever is wrong with it."""

import pytest

from r1zero.reward import RewardError, Scorer, check_rules

RESPONSE = r"so \boxed{\frac{2}{4}}"


def grade(*paths, memory_mib=512, **context):
    """The score of one response by the function `rule` of each file."""
    rules = {f"{path}:rule": 1.0 for path in paths}
    with Scorer(rules, workers=1, deadline_s=20.0, memory_mib=memory_mib) as scorer:
        scorer.submit(0, RESPONSE, "0.5", **context)
        return scorer.collect()[0]


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "mine.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


RULES = [
    "def rule(response, label): return 2.0",
    "rule = lambda response, label: 2.0",
    "from beside import score as rule",
    "import beside\nrule = beside.score",
    "from beside import *\nrule = score",
    (
        "try:\n    from no_such_module_at_all import rule\nexcept ImportError:\n    def rule(response, label): "
        "return 2.0"
    ),
    "class Rule:\n    def __call__(self, response, label): return 2.0\nrule = Rule()",
    "import functools, beside\nrule = functools.partial(beside.power, exponent=1)",
    "def rule(response, label):\n    import late\n    return late.score(response, label)",
    "def rule(*texts): return len(texts)",
    "def rule(response, label, least=2): return least",
]


def test_a_rule_may_be_anything_that_can_be_called_and_may_import_what_lies_beside_it(written):
    written(
        "def score(response, label): return 2.0\ndef power(response, label, exponent): return 2.0 ** exponent",
        "beside.py",
    )
    written("def score(response, label): return 2.0", "late.py")
    paths = {text: written(text, f"rule_{number}.py") for number, text in enumerate(RULES)}
    found = grade(*paths.values())
    assert {text: found.scores[f"{path}:rule"] for text, path in paths.items()} == dict.fromkeys(RULES, 2.0)


SIGNATURES = {
    "response, label": [],
    "response, label, *, prompt": ["What is it?"],
    "response, label, additional, prompt": [{"level": "5", "kind": None}, "What is it?"],
    "response, label, *, equal, prompt='x'": [True, "What is it?"],
    "response, label, **given": [["additional", "equal", "prompt"]],
}


def test_a_rule_gets_by_name_what_it_declares(written):
    paths = {}
    for signature, seen in SIGNATURES.items():
        names = [name.split("=")[0].strip("* ") for name in signature.split(",")[2:]]
        given = {"equal": "equal('1/2', label)", "given": "sorted(given)"}
        values = ", ".join(given.get(name, name) for name in names if name)
        code = f"def rule({signature}):\n    return 1.0 if [{values}] == {seen!r} else 0.0"
        paths[signature] = written(code, f"rule_{len(paths)}.py")
    found = grade(*paths.values(), prompt="What is it?", additional={"level": "5", "kind": None})
    assert {name: found.scores[f"{path}:rule"] for name, path in paths.items()} == dict.fromkeys(SIGNATURES, 1.0)


def test_without_prompt_and_columns_a_rule_gets_empty_ones(written):
    assert (
        grade(
            written("def rule(response, label, *, prompt, additional): return float((prompt, additional) == ('', {}))")
        ).reward
        == 1.0
    )


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "import no_such_module_at_all\ndef rule(response, label): pass",
            r"mine\.py:1: ModuleNotFoundError: No module named",
        ),
        ("import beside\ndef rule(response, label): pass", r"mine\.py:1: ZeroDivisionError: division by zero"),
        ("def rule(response, label): pass\nexit(3)", r"mine\.py:2: SystemExit: 3"),
        (
            "def rule(response, label, tokens): pass",
            r'nothing fills its parameter "tokens"; a rule is called as rule\(response, label\)',
        ),
        (
            "def rule(response, label, *, tokens, prompt): pass",
            r'"tokens";.* gets prompt, additional and equal by name',
        ),
        ("def rule(response): pass", "takes 1 texts by position"),
        ("def rule(response, *, prompt): pass", "takes 1 texts by position"),
        ("rule = 5", r'mine\.py defines no function "rule"'),
    ],
)
def test_a_rule_that_cannot_be_used_stops_the_start_with_one_sentence(written, capfd, text, sentence):
    written("1 / 0", "beside.py")
    with pytest.raises(RewardError, match=sentence) as error:
        grade(written(text))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def rul(response, label): pass", 'defines no function "rule"; the nearest defined name is "rul"'),
        ("x = 1", 'defines no function "rule"; the only defined name is "x"'),
        ("", r'mine\.py defines no function "rule"; there is no defined name$'),
        ("def rule(:", r"mine\.py:1 is not Python"),
        ("rule = '\0'", r"mine\.py.* is not Python"),
    ],
)
def test_a_file_is_refused_unrun(written, text, sentence):
    with pytest.raises(RewardError, match=sentence):
        check_rules([f"{written(text)}:rule"])


@pytest.mark.parametrize(
    "body, sentence",
    [
        ("return response.no_such_thing", "mine.py:2: AttributeError: 'str' object has no attribute 'no_such_thing'\n"),
        (
            "return len(bytearray(1 << 40))",
            "mine.py:2: MemoryError; a grading worker may use 512 MiB beyond its initial memory: raise ",
        ),
        (
            "import os; os.abort()",
            "a response was not graded: its worker was ended by SIGABRT; a grading worker may use 512 MiB",
        ),
    ],
)
def test_a_rule_that_fails_says_where_and_what_the_limit_is(written, capfd, body, sentence):
    assert grade(written(f"def rule(response, label):\n    {body}\n")).outcome == "failed"
    err = capfd.readouterr().err
    assert sentence in err and err.count("\n") == 1, err


def test_a_reason_is_written_once_and_twenty_reasons_at_most(written, capfd):
    path = written("def rule(response, label):\n    return {}[response if label == 'own' else 'same']\n")
    with Scorer({f"{path}:rule": 1.0}, 2, 5.0) as scorer:
        for label, count in (("same", 6), ("own", 30)):
            for number in range(count):
                scorer.submit((label, number), str(number), label)
        assert {score.outcome for score in scorer.collect().values()} == {"failed"}
    lines = capfd.readouterr().err.splitlines()
    assert sum("KeyError: 'same'" in line for line in lines) == 1 and len(lines) == len(set(lines)) == 21
    assert lines[-1] == "why other responses were not graded is not shown"


def test_the_limit_of_memory_can_be_set(written):
    path = written("def rule(response, label): return float(len(bytearray(300 << 20)) >> 20)")
    assert grade(path, memory_mib=600).reward == 300.0
    assert grade(path, memory_mib=100).outcome == "failed"
