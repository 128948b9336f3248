"""Measures the speed of grading: `python -m tests.bench.reward [--math-verify]`.

First, the grades per second of one core and the latency of a grade, in CPU time, over the labelled suite: each pair
once, without cached answers, after the same warm-up as in a run; pairs of equal strings are measured separately.
Then a step as in a run, in wall time: responses end one by one while this process keeps computing, and the time that
the step waits after the last one is measured. The load of the machine is printed too.
"""

import argparse
import os
import random
import sys
import time

from tests.reward.reward_data import Pair, forget, read_pairs

RESPONSES, STEP_S, WORKERS = 512, 20.0, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--math-verify", action="store_true", help="also time math-verify called directly")
    options = parser.parse_args()
    pairs = [pair for pair in read_pairs() if pair.label != pair.answer]
    write(f"{len(pairs)} pairs; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.math_verify:
        rate("math-verify called directly", pairs, math_verify_decision())
    rate("r1zero.reward", pairs, our_decision())
    strings = [pair for pair in read_pairs() if pair.label == pair.answer]
    rate("r1zero.reward, equal strings", strings * 20, our_decision())
    step(pairs)


def our_decision():
    from r1zero.reward.equality import answers, solver
    from r1zero.reward.workers import warmup

    solver.load()
    for _ in answers.warm(warmup.FIRST + warmup.EQUAL + warmup.REST):
        pass

    def decide(pair: Pair) -> bool:
        forget()
        return answers.equal(pair.answer, pair.label)

    return decide


def math_verify_decision():
    import logging

    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig, extract_latex, parse_latex_cached

    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def decide(pair: Pair) -> bool:
        extract_latex.cache_clear()
        parse_latex_cached.cache_clear()
        gold, pred = (
            parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
            for text in (pair.label, pair.answer)
        )
        return verify(gold, pred, timeout_seconds=None)

    return decide


def rate(name: str, pairs: list[Pair], decide) -> None:
    seconds, agreed, accepted = [], 0, 0
    for pair in pairs:
        started = time.process_time()
        verdict = decide(pair)
        seconds.append(time.process_time() - started)
        agreed += verdict == pair.right
        accepted += verdict and not pair.right
    seconds.sort()
    p50, p99 = (1000 * seconds[int(share * len(seconds))] for share in (0.5, 0.99))
    write(
        f"{name}: {len(seconds) / sum(seconds):.0f} grades/s per core, p50 {p50:.2f} ms, p99 {p99:.1f} ms, "
        f"max {1000 * seconds[-1]:.0f} ms; {agreed} of {len(pairs)} right, {accepted} wrong answers accepted"
    )


def step(pairs: list[Pair]) -> None:
    """Measure a step in which responses end at random times while this process computes all the time, as an engine."""
    from r1zero.reward import Scorer

    chooser = random.Random(0)
    with Scorer(rules={"base_acc": 1.0}, workers=WORKERS, deadline_s=5.0) as scorer:
        scorer.submit("warm", r"\boxed{1}", "1")
        scorer.collect()
        time.sleep(10)  # the warm-up of the workers, which begins when the first answer was compared
        ends = sorted(chooser.uniform(0, STEP_S) for _ in range(RESPONSES))
        slowest_submit, started = 0.0, time.monotonic()
        for number, end in enumerate(ends):
            while time.monotonic() - started < end:
                sum(range(1000))
            pair, before = chooser.choice(pairs), time.monotonic()
            text = f"<think>{'thinking ' * 400}</think><answer>\\boxed{{{pair.answer}}}</answer>"
            scorer.submit(number, text, pair.label)
            slowest_submit = max(slowest_submit, time.monotonic() - before)
        generated = time.monotonic() - started
        scores = scorer.collect()
    unscored = sum(score.outcome != "scored" for score in scores.values())
    write(
        f"a step of {generated:.1f} s with {RESPONSES} responses and {WORKERS} workers waits "
        f"{1000 * scorer.waited_s:.1f} ms "
        f"after the last token ({scorer.waited_s / (generated + scorer.waited_s):.3%} of the step); the slowest "
        f"submit took "
        f"{1000 * slowest_submit:.2f} ms; {unscored} not scored"
    )


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
