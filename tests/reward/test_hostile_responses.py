"""python -m pytest tests/reward/test_hostile_responses.py

What a policy, or whoever wrote the responses, may try: each sample ends in time, graded rightly, and harms no other."""

import os
import time
from pathlib import Path

import pytest

from r1zero.reward import Scorer
from r1zero.reward.boxes import last_box
from r1zero.reward.scorer import MEMORY_MIB

DEADLINE_S = 5.0
# The pool keeps to 0.5 s past the deadline; where more processes run than there are cores it must wait for its turn
# first.
SLACK_S = 0.5 * max(1.0, os.getloadavg()[0])
MARK = "/tmp/r1zero_hostile_mark"
HONEST = r"<think>half</think><answer>\boxed{\frac{1}{2}}</answer>"


def boxed(answer: str) -> str:
    return rf"<think>x</think><answer>\boxed{{{answer}}}</answer>"


def python(code: str) -> list[str]:
    """The code bare, in text, as a function and as an index."""
    return [boxed(form) for form in (code, rf"\text{{{code}}}", rf"\operatorname{{{code}}}(1)", f"x_{{{code}}}")]


# Name: responses to the label 1/2, none of which is right.
WRONG = {
    "towers of powers": [boxed(a) for a in (
        "9^{9^{9^{9}}}", "9^9^9^9^9", "(((9^9)^9)^9)^9", "2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "9^{999999999}",
        "99999^{99999}", "9^{9^{9^x}}", "x^{9^{9^9}}", r"\sqrt[9^{9^9}]{2}", r"e^{e^{e^{e^{e^{e}}}}}", "9^{-9^{9}}",
        r"\frac{1}{9^{99999}}", "(9^{9^9}, 5)", "[0, 9^{99999}]", r"\{9^{99999}, 1\}", "(1+x)^{99999}", "0.1^{99999}",
        r"9^{99 \cdot 99 \cdot 99 \cdot 99 \cdot 99 \cdot 99}", "2^{99!}", "(x^{99999})^{99999}", "664E445000",
        "x > 9^{9^9}",
        "x = 9^{9^{9^9}}", r"e^{10^{10^{10}}}", r"x^{9^{9^9}} + y = 1", r"\sqrt[9]{9^{9^{9^9}}}", "(9^{9^9})_{2}",
        "9^{9^{9^9}}:1",
    )],
    "factorial chains": [boxed(a) for a in (
        "9!!!!!!!!", "((9!)!)!", "99999!", "999999999!", "(99999!)!", r"\frac{99999!}{99998!}", "(3!)!!", r"(10^5)!",
        r"\binom{99999}{50000}", r"\binom{10^9}{10^8}", r"\Gamma(10^{9})", r"\prod_{k=1}^{99999} k", r"(5^{5^5})!",
    )],
    "sums and integrals": [boxed(a) for a in (
        r"\sum_{k=1}^{10^{9}} \frac{1}{k^k}", r"\int_0^1 \int_0^1 \int_0^1 e^{x^y^z} dx dy dz",
        r"\lim_{x\to 0} x^{x^{x^x}}",
        r"\int e^{\sin x^x} \ln(\cos x) dx", r"\sum_{k=1}^{\infty} \sin(k!)^{k}", r"\prod_{k=1}^{10^9} (1 + x^k)",
    )],
    "hard to simplify": [boxed(a) for a in (
        "+".join(rf"\sqrt{{{n}}}" for n in range(2, 60)), "".join(f"(x^{n}+{n}y)" for n in range(2, 40)),
        "(" * 18 + "x" + "+1)^2" * 18, r"\sin(" * 15 + "x" + ")" * 15, "x^{100}+" * 60 + "1=y^{100}",
        r"\begin{pmatrix}"
        + r"\\".join("&".join(f"x^{{{i * j}}}" for i in range(9)) for j in range(9)) + r"\end{pmatrix}",
    )],
    "deep nesting": [boxed(a) for a in (
        "{" * 100_000 + "1" + "}" * 100_000, "(" * 100_000, r"\frac{1}{" * 50_000 + "2" + "}" * 50_000, "[" * 900,
        r"\sqrt{" * 300 + "1" + "}" * 300, "-" * 900 + "1", r"\left(" * 150 + "1" + r"\right)" * 150, "1+" * 490 + "1",
        r"\text{" * 100 + "1" + "}" * 100, "^" * 900, "_" * 900, "2/" * 400 + "2", "1," * 450 + "2", "|" * 900,
    )],
    "size": [
        boxed("1" * 1_000_000), boxed("0." + "3" * 1_000_000), boxed("x" * 1_000_000), boxed(" " * 1_000_000 + "1"),
        boxed("1" * 999), boxed("." * 999), "y" * 5_000_000, boxed("1/" + "2" * 1_000_000), boxed(r"\$" * 499),
        boxed("1" + " " * 900 + "2"), boxed("a " * 400), boxed("{}" * 400), boxed("$" * 900),
    ],
    "many boxes": [
        r"\boxed{1}" * 500_000 + r"\boxed{2}", r"\boxed{" * 700_000, r"\boxed{" * 400_000 + "}" * 400_000,
        boxed(r"\boxed{1}" * 100), r"\boxed " * 700_000, r"\boxed{}" * 600_000, boxed(r"\frac{1}{2}") + r"\boxed{",
    ],
    "tags for backtracking": [
        "<think>" * 300_000, "<think></think><answer>" * 100_000, "<think>" + "</think><answer>" * 100_000,
        ("<think></think><answer>\\boxed{" * 50_000) + "1", "<think></think>" + " \n" * 1_000_000 + "<answer>",
        "</think> " * 300_000, "1.\n" * 300_000, "<think></think><answer>" + "</answer>x" * 200_000,
    ],
    "python and shell": [
        *python(f"__import__('os').system('touch {MARK}')"), *python(f"open('{MARK}','w')"), *python("exit(0)"),
        *python("().__class__.__mro__[1].__subclasses__()"), *python("eval('1/2')"), *python("lambda: 0"),
        boxed(f"$(touch {MARK})"), boxed(f"`touch {MARK}`"), boxed(rf"\write18{{touch {MARK}}}"), boxed("1;import os"),
        boxed(r"\input{/etc/passwd}"), boxed("{{7*7}}"), boxed("%s%n%x"), boxed("S(1)/2"), boxed("Rational(1,2)"),
        boxed("Integer(1)"), boxed(f"E**__import__('os').system('touch {MARK}')"), boxed("0.5 if True else 0"),
        boxed("'0.5'*1"), boxed("1 and 1/2"), boxed("None"), boxed("True"),
    ],
    "look-alikes": [boxed(a) for a in (
        "٠.٥", "０.５", "𝟎.𝟓", "½½", "l/2", "1∕2\u200b3", "Ⅰ/Ⅱ", "O.5", "0․5", "一/二", "o.5", "1/٢",
    )],
    "bytes that are no text": [boxed(a) for a in (
        "1\x002", "\x00", "0.5\x00", "\x001/2", "\ud800", "\x1b[2J0.5", "\u202e0.5", "\ufeff\ufeff", "\x7f1/2",
        "1\u20602",
    )],
    "nothing": [boxed(a) for a in (
        "", " ", "{}", r"\,", "$$", ".", r"\text{}", r"\quad", "?", "...", r"\boxed{}", "~", "\\",
    )],
    "not a value": [boxed(a) for a in (
        r"\frac{1}{0}", r"\frac{0}{0}", r"\infty", r"\infty - \infty", "nan", r"\text{nan}", r"0 \cdot \infty", "0^0",
        "inf",
        r"\log 0", r"\tan \frac{\pi}{2}", "x = x", r"\frac{1}{2} \text{ or } 1", "1/2/3", r"\frac{1}{2}, \frac{1}{3}",
    )],
}  # fmt: skip

RIGHT = {
    "half a million wrong boxes before": r"\boxed{3}" * 500_000 + HONEST[-34:],
    "5 MB of thinking": "<think>" + "so " * 1_700_000 + r"</think><answer>\boxed{0.5}</answer>",
    "unclosed braces before": "<think>" + "{" * 100_000 + r"</think><answer>\boxed{1/2}</answer>",
    "tags in the thinking": "<think>" + "<answer></think>" * 50_000 + r"<answer>\boxed{1/2}</answer>",
}


@pytest.fixture(scope="module")
def scorer():
    with Scorer(
        rules={"base_acc": 1.0, "format": 0.0, "strict_format": 0.0, "step": 0.0}, workers=2, deadline_s=DEADLINE_S
    ) as s:
        s.submit("warm", HONEST, "0.5")
        s.collect()
        yield s


def workers(scorer: Scorer) -> list[str]:
    supervisor = scorer._pool._process.pid
    return Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()


def grade_among_honest(scorer: Scorer, responses: list[str]) -> dict:
    for number, response in enumerate(responses):
        scorer.submit(("honest", number), HONEST, "0.5")
        scorer.submit(("hostile", number), response, r"\frac{1}{2}")
    return scorer.collect()


@pytest.mark.parametrize("kind", WRONG)
def test_no_attack_is_rewarded_none_outlasts_its_deadline_and_the_honest_beside_it_are_graded(scorer, kind):
    scores = grade_among_honest(scorer, WRONG[kind])
    for (who, number), score in scores.items():
        if who == "honest":
            assert (score.outcome, score.equal, score.reward) == ("scored", True, 1.0)
            continue
        shown = WRONG[kind][number][:120]
        assert score.ms <= 1000 * (DEADLINE_S + SLACK_S), shown
        assert score.outcome in ("scored", "timeout"), shown
        if score.outcome == "scored":
            assert score.equal is False and score.scores["base_acc"] == 0.0, shown
    assert not os.path.exists(MARK)


@pytest.mark.parametrize("kind", sorted(set(WRONG) - {"size", "many boxes", "tags for backtracking"}))
def test_the_bounds_decide_every_attack_without_a_deadline(equal, kind):
    """Were one of them to hang, so would this test."""
    for response in WRONG[kind]:
        box = last_box(response)
        assert box is None or not equal(box.content, r"\frac{1}{2}"), response[:120]


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_answer_is_found_whatever_stands_before_it(scorer, kind):
    scores = grade_among_honest(scorer, [RIGHT[kind]])
    assert scores["hostile", 0].outcome == "scored" and scores["hostile", 0].equal is True
    assert scores["hostile", 0].scores["base_acc"] == float(RIGHT[kind].startswith("<think>"))


def test_a_burst_of_attacks_does_not_hold_up_the_honest(scorer):
    bombs = [r"\boxed{\sum_{k=1}^{\infty} \sin(k!)^{k} = x^{x^x} + " + f"{n}}}" for n in range(12)]
    started = time.monotonic()
    scores = grade_among_honest(scorer, bombs)
    assert all(score.outcome == "scored" for (who, _), score in scores.items() if who == "honest")
    assert time.monotonic() - started <= 12 * DEADLINE_S / 4, "each of two workers sets three aside and goes on"


def test_the_address_space_of_every_worker_is_bounded(scorer):
    assert workers(scorer)
    for worker in workers(scorer):
        lines = Path(f"/proc/{worker}/limits").read_text().splitlines()[1:]
        limits = {line[:25].strip(): line[26:].split()[0] for line in lines}
        assert int(limits["Max address space"]) <= (MEMORY_MIB << 20) + (1 << 30)
        assert limits["Max core file size"] == "0" and limits["Max cpu time"] != "unlimited"


@pytest.mark.parametrize("bomb", ["bytearray(64 << 30)", "bomb(response, label)", "[0] * 10**11", "'x' * 10**12"])
def test_a_rule_that_eats_memory_or_recurses_ends_alone(tmp_path, bomb):
    path = tmp_path / "bomb.py"
    path.write_text(f"def bomb(response, label):\n    return float(len({bomb})) if response == 'bomb' else 1.0\n")
    with Scorer(rules={f"{path}:bomb": 1.0}, workers=1, deadline_s=DEADLINE_S) as scorer:
        for number in range(4):
            scorer.submit(number, "bomb" if number % 2 else "fine", "")
        assert [score.outcome for score in scorer.collect().values()] == ["scored", "failed"] * 2
