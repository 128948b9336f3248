"""The counter-based draw: its hash, the inversion of the distribution, and the rows of a batch.

python -m pytest tests/rollout/test_draw.py
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from r1zero.rollout import draw
from r1zero.rollout.distribution import BLOCK, kept_sums, normalise
from r1zero.rollout.draw import MOST_LEVELS, Journal, as_logits_processor, choose, levels, request_arguments, uniforms

SPLITMIX64 = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
"""The first outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) for seed 1234567."""
ALMOST_1 = 1 - 2.0**-53


def drawn(seeds: Sequence[int], counts: Sequence[int], vocabulary: int) -> Tensor:
    return torch.from_numpy(uniforms(np.array(seeds, np.uint64), np.array(counts, np.uint64), levels(vocabulary)))


def logprobs(rows: int, vocabulary: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * scale).log_softmax(-1)


def test_the_hash_is_splitmix64_at_any_position():
    seeds, counts = np.array([1234567, 1234567], np.uint64), np.array([0, 1], np.uint64)
    numbers = uniforms(seeds, counts, MOST_LEVELS)
    assert [int(number * 2**53) for number in numbers.flatten()[:5]] == [output >> 11 for output in SPLITMIX64]
    assert (uniforms(seeds, counts, 1) == numbers[:, :1]).all(), "a number does not depend on how many are asked for"


def test_uniform_numbers_of_large_seeds_and_counts_are_uniform_and_independent_of_each_other():
    seeds = np.arange(2**64 - 20_000, 2**64, dtype=np.uint64)
    numbers = uniforms(seeds, np.arange(20_000, dtype=np.uint64) % np.uint64(5), 3)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    for i, j in ((0, 1), (0, 2), (1, 2)):
        cells = np.histogram2d(numbers[:, i], numbers[:, j], bins=10, range=[[0, 1], [0, 1]])[0]
        assert ((cells - 200) ** 2 / 200).sum() < 99 + 5 * math.sqrt(2 * 99), "chi-square of 99 degrees of freedom"


@pytest.mark.parametrize("vocabulary, expected", [(1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3), (151_936, 3)])
def test_levels(vocabulary, expected):
    assert levels(vocabulary) == expected <= MOST_LEVELS


VOCABULARIES = (1, 2, 63, BLOCK, BLOCK + 1, 130, BLOCK**2, BLOCK**2 + 1, 129_280, 151_936)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_at_the_ends_of_the_interval_the_first_and_last_token_with_a_weight_are_drawn(vocabulary, precision):
    """Also if 1 - 2**-53 rounds to 1, as in single precision. Ids without a weight are at both ends and in between."""
    weights = logprobs(1, vocabulary)[0].exp()
    first, last = vocabulary // 3, vocabulary - 1 - vocabulary // 4
    weights[:first], weights[last + 1 :] = 0, 0
    weights[first + 1 : last : 2] = 0
    rows = torch.tensor([0.0, ALMOST_1], dtype=torch.float64)[:, None].expand(-1, levels(vocabulary)).to(precision)
    assert choose(weights.log().expand(2, -1), rows).tolist() == [first, last]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_token_of_weight_0_is_never_drawn_and_the_only_one_with_a_weight_always(vocabulary):
    weights = logprobs(80, vocabulary).exp()
    only = torch.arange(80) * 7919 % vocabulary
    weights[40:] = 0
    weights[40:].scatter_(1, only[40:, None], 1e-30)
    weights[:40, ::2] = 0
    weights[:40, -1] = 0.0 if vocabulary > 2 else 1.0
    tokens = choose(weights.log(), drawn(range(80), [0] * 80, vocabulary))
    assert (weights.gather(1, tokens[:, None]) > 0).all()
    assert torch.equal(tokens[40:], only[40:])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [40, BLOCK, 1000, 5000])
@pytest.mark.parametrize("content", [torch.nan, -torch.inf])
def test_damaged_logits_give_a_token_of_the_vocabulary(content, vocabulary, precision):
    """The parity gate reports them. Here they must not lead outside of the tensor."""
    rows = torch.full((3, vocabulary), content)
    rows[1:] = logprobs(2, vocabulary)
    rows[1, vocabulary - 1] = content
    tokens = choose(rows, drawn([1, 2, 3], [0] * 3, vocabulary).to(precision))
    assert ((tokens >= 0) & (tokens < vocabulary)).all()


@pytest.mark.parametrize(
    "weights, numbers, token",
    [
        ([0.2, 0.3, 0.5], [0.19], 0),
        ([0.2, 0.3, 0.5], [0.21], 1),
        ([0.2, 0.3, 0.5], [0.51], 2),
        ([1.0, 1.0, 2.0], [0.49], 1),  # weights need not add up to 1
        ([0.0] * BLOCK + [1.0, 3.0], [0.0, 0.24], BLOCK),
        ([0.0] * BLOCK + [1.0, 3.0], [0.0, 0.26], BLOCK + 1),
        ([3.0] + [0.0] * (BLOCK - 1) + [1.0], [0.74, 0.9], 0),
        ([3.0] + [0.0] * (BLOCK - 1) + [1.0], [0.76, 0.9], BLOCK),
    ],
)
def test_worked_draws(weights, numbers, token):
    assert choose(torch.tensor([weights]).log(), torch.tensor([numbers], dtype=torch.float64)).item() == token


@pytest.mark.parametrize("vocabulary", [5, 70])
def test_over_a_grid_of_uniform_numbers_each_token_has_the_share_of_its_weight(vocabulary):
    """Along each axis of the grid a boundary is at most one step of 1/300 off."""
    grid = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    numbers = torch.cartesian_prod(*[grid] * levels(vocabulary)).view(-1, levels(vocabulary))
    weights = logprobs(1, vocabulary)[0].exp()
    tokens = choose(weights.log().expand(len(numbers), -1), numbers)
    shares = torch.bincount(tokens, minlength=vocabulary) / len(numbers)
    assert (shares - weights).abs().max() <= 2 * levels(vocabulary) / 300


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95])
def test_a_search_on_a_cpu_and_comparisons_elsewhere_give_the_same_index(zeros):
    """The second way is taken for single precision, too, in which these numbers and sums are exact."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 100, (5000, BLOCK), generator=generator).float()
    weights[torch.rand(weights.shape, generator=generator) < zeros] = 0
    weights[:, 17] = 1
    numbers = torch.randint(0, 2**16, (5000,), generator=generator, dtype=torch.float64) / 2**16
    numbers[:100] = 0
    found = draw._invert(weights, numbers)
    assert torch.equal(found, draw._invert(weights, numbers.float()))
    assert (weights.gather(1, found[:, None]) > 0).all()


def test_draws_over_a_large_vocabulary_have_its_distribution():
    """Chi-square over the 250 likeliest tokens and the rest, 20,000 draws."""
    row = logprobs(1, 151_936, scale=4.0)[0]
    likeliest = row.topk(250).indices
    place = torch.full((151_936,), 250).scatter_(0, likeliest, torch.arange(250))
    counts = torch.zeros(251)
    for first in range(0, 20_000, 500):
        tokens = choose(row.expand(500, -1), drawn(range(first, first + 500), [3] * 500, 151_936))
        counts += torch.bincount(place[tokens], minlength=251)
    expected = torch.cat([row[likeliest].exp(), 1 - row[likeliest].exp().sum().view(1)]) * 20_000
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 250 + 5 * math.sqrt(2 * 250)


def blocks(entries: Tensor, size: int) -> Tensor:
    return torch.cat([entries, entries.new_zeros(-len(entries) % size)]).view(-1, size)


def flip_chance(old: Tensor, new: Tensor, size: int) -> float:
    """The chance that a draw from another distribution with the same uniform numbers gives another token: at each level
    one minus the overlap of an entry's old and new interval, in double precision."""
    sums = [(old, new)]
    while len(sums[-1][0]) > size:
        sums.append(tuple(blocks(entries, size).sum(-1) for entries in sums[-1]))
    stay = torch.ones(1, dtype=torch.float64)
    for pair in reversed(sums):
        ends, widths = [], []
        for entries in pair:
            part = blocks(entries, size)
            widths.append(part / part.sum(-1, keepdim=True).clamp_min(1e-300))
            ends.append(widths[-1].cumsum(-1))
        begins = [end - width for end, width in zip(ends, widths, strict=True)]
        overlap = (torch.minimum(*ends) - torch.maximum(*begins)).clamp_min(0)
        stay = (stay[: len(overlap), None] * overlap).flatten()
    return float(1 - stay.sum())


@pytest.mark.parametrize("vocabulary, one_level", [(48, 7e-6), (151_936, 2e-3)])
def test_rounding_differences_of_1e_6_change_a_token_with_the_chance_that_the_module_states(vocabulary, one_level):
    generator, worst, worst_of_one = torch.Generator().manual_seed(0), 0.0, 0.0
    for scale in (1.0, 2.0, 4.0, 8.0, 12.0, 16.0):
        logits = torch.randn(vocabulary, generator=generator, dtype=torch.float64) * scale
        other = logits + 1e-6 * torch.randn(vocabulary, generator=generator, dtype=torch.float64)
        old, new = logits.softmax(-1), other.softmax(-1)
        worst = max(worst, flip_chance(old, new, BLOCK))
        worst_of_one = max(worst_of_one, flip_chance(old, new, 2**18))
    assert 1e-6 < worst < 1.5e-5
    assert one_level / 5 < worst_of_one < one_level * 2


def test_the_share_of_changed_draws_is_that_chance():
    row = logprobs(1, 5000, scale=3.0)[0]
    other = (row + 1e-3 * torch.randn(5000, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    chance = flip_chance(row.double().exp(), other.double().exp(), BLOCK)
    numbers = drawn(range(40_000), [0] * 40_000, 5000)
    old, new = (torch.cat([choose(one.expand(4000, -1), part) for part in numbers.split(4000)]) for one in (row, other))
    expected = 40_000 * chance
    assert expected > 50 and abs(int((old != new).sum()) - expected) < 4 * math.sqrt(expected)


class Batch:
    """What vLLM tells its logits processors about a batch."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.draw = as_logits_processor(self.journal)(None, torch.device("cpu"), False)

    def tell(self, added=(), removed=(), moved=(), size=0) -> None:
        from vllm.v1.sample.logits_processor import BatchUpdate

        rows = [(row, SimpleNamespace(extra_args=arguments), None, output) for row, arguments, output in added]
        self.draw.update_state(BatchUpdate(size, removed, rows, moved))

    def tokens(self, logits: Tensor) -> list[int]:
        given = logits.clone()
        left = self.draw.apply(given)
        tokens = left.argmax(-1)
        assert left is given
        assert torch.equal(left, logits.scatter(1, tokens[:, None], torch.inf)), "nothing else is written"
        return tokens.tolist()


def chosen(row: Tensor, seed: int, count: int, temperature: float = 1.0) -> int:
    """The token of one request alone."""
    return choose((row / temperature)[None], drawn([seed], [count], len(row))).item()


@pytest.mark.parametrize("vocabulary", [40, 1000])
def test_a_row_of_256_is_drawn_as_a_row_alone(vocabulary):
    together, outputs = Batch(), [[0] * (row % 7) for row in range(256)]
    together.tell([(row, request_arguments(row, row**5), outputs[row]) for row in range(256)], size=256)
    logits = logprobs(256, vocabulary)
    tokens = together.tokens(logits)
    for row in range(256):
        alone = Batch()
        alone.tell([(0, request_arguments(row, row**5), outputs[row])], size=1)
        assert alone.tokens(logits[row : row + 1]) == [tokens[row]]
        assert chosen(logits[row], row**5, row % 7) == tokens[row]
    outputs[3].append(5)  # vLLM's list of the sampled tokens grows, and nothing is told
    together.tell([], size=256)
    later = together.tokens(logits)
    assert later[3] == chosen(logits[3].float(), 3**5, 4)
    assert later[:3] + later[4:] == tokens[:3] + tokens[4:]


def test_requests_keep_their_seed_and_count_when_rows_come_go_and_move():
    from vllm.v1.sample.logits_processor import MoveDirectionality

    batch, logits = Batch(), logprobs(4, 50)
    requests = {name: (seed, [0] * count) for seed, (name, count) in enumerate({"a": 0, "b": 3, "c": 5}.items(), 10)}

    def add(row: int, name: str) -> tuple[int, dict, list[int]]:
        seed, output = requests[name]
        return row, request_arguments(seed - 10, seed), output

    def check(rows: str) -> None:
        assert batch.tokens(logits[: len(rows)]) == [
            chosen(logits[row], requests[name][0], len(requests[name][1])) for row, name in enumerate(rows)
        ]

    batch.tell([add(0, "a"), add(1, "b"), add(2, "c")], size=3)
    check("abc")
    batch.tell(moved=[(0, 2, MoveDirectionality.SWAP)], size=3)
    check("cba")
    batch.tell(removed=[2], size=2)
    check("cb")
    batch.tell([add(0, "a")], size=2)  # takes the place of a request that has ended
    check("ab")
    batch.tell(removed=[0], moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)], size=1)
    check("b")


def test_rows_without_a_seed_keep_their_logits():
    batch, logits = Batch(), logprobs(4, 50)
    batch.tell([(row, request_arguments(row, row) if row % 2 else None, []) for row in range(4)], size=4)
    left = batch.draw.apply(logits.clone())
    assert torch.equal(left[::2], logits[::2])
    assert left[1::2].argmax(-1).tolist() == [chosen(logits[row], row, 0) for row in (1, 3)]
    greedy = Batch()
    greedy.tell([(row, None, []) for row in range(4)], size=4)
    assert greedy.draw.apply(logits) is logits


@pytest.mark.parametrize("temperature", [0.01, 0.6, 1.0, 1.7])
def test_a_row_of_another_temperature_is_drawn_from_the_tempered_distribution(temperature):
    batch, logits = Batch(), logprobs(200, 300)
    temperatures = [temperature if row % 2 else 1.0 for row in range(200)]
    batch.tell([(row, request_arguments(row, row, one), []) for row, one in enumerate(temperatures)], size=200)
    expected = [chosen(logits[row], row, 0, one) for row, one in enumerate(temperatures)]
    assert batch.tokens(logits) == expected


@pytest.mark.parametrize("vocabulary", [48, 1000, 5000])
def test_the_tokens_are_those_of_the_logprobs_alone_whether_or_not_their_sums_are_kept(vocabulary):
    """`normalise` keeps sums with its result. Logits of any other tensor, such as a copy or some of the rows, have sums
    of their own."""
    batch, rows = Batch(), 60
    batch.tell([(row, request_arguments(row, row), []) for row in range(rows)], size=rows)
    first, second = (
        normalise(logprobs(rows, vocabulary, seed=seed) + 5.0, 1.0, torch.zeros(0, dtype=torch.long)) for seed in (1, 2)
    )
    expected = [[chosen(row, number, 0) for number, row in enumerate(logits)] for logits in (first, second)]
    assert expected[0] != expected[1]
    copy = first.clone()
    assert batch.draw.apply(first.clone()).argmax(-1).tolist() == expected[0], "after the sums of `second` were kept"
    assert batch.draw.apply(second).argmax(-1).tolist() == expected[1]
    assert batch.draw.apply(first).argmax(-1).tolist() == expected[0]
    assert torch.equal(first, copy.scatter(1, torch.tensor(expected[0])[:, None], torch.inf))
    batch.tell(removed=range(20, rows)[::-1], size=20)
    assert batch.draw.apply(copy[:20]).argmax(-1).tolist() == expected[0][:20], "another number of rows"


def test_the_sums_that_are_kept_are_used():
    """With the sums of another distribution the blocks are those of the other."""
    batch, logits = Batch(), normalise(logprobs(60, 1000), 1.0, torch.zeros(0, dtype=torch.long))
    batch.tell([(row, request_arguments(row, row), []) for row in range(60)], size=60)
    kept_sums(logits)[:] = torch.nn.functional.one_hot(torch.arange(60) % 15, 16)
    assert [token // BLOCK for token in batch.draw.apply(logits).argmax(-1).tolist()] == [row % 15 for row in range(60)]


def test_in_a_batch_of_which_some_rows_are_drawn_their_tokens_are_the_same():
    none = torch.zeros(0, dtype=torch.long)
    logits, batch = normalise(logprobs(40, 1000), 1.0, none), Batch()
    expected = [chosen(row, number, 0) for number, row in enumerate(logits)]
    before = logits.clone()
    batch.tell([(row, request_arguments(row, row) if row % 3 else None, []) for row in range(40)], size=40)
    left = batch.draw.apply(logits)
    assert torch.equal(left[::3], before[::3])
    assert [token for row, token in enumerate(left.argmax(-1).tolist()) if row % 3] == [
        token for row, token in enumerate(expected) if row % 3
    ]


def test_at_a_low_temperature_only_the_likeliest_tokens_are_drawn():
    """A token 0.3 behind the likeliest has e**-300 of its weight; without a shift all weights would round to 0."""
    batch, logits = Batch(), logprobs(200, 300)
    batch.tell([(row, request_arguments(row, row, 0.001), []) for row in range(200)], size=200)
    tokens = torch.tensor(batch.tokens(logits))
    assert (logits.gather(1, tokens[:, None])[:, 0] > logits.amax(-1) - 0.3).all()


def test_at_temperature_0_the_likeliest_token_is_taken_beside_rows_that_are_drawn():
    batch, logits = Batch(), logprobs(4, 300)
    logits[0, [7, 200]] = 0.5  # equal and the largest
    batch.tell([(row, request_arguments(row, row, float(row % 2)), []) for row in range(4)], size=4)
    assert batch.tokens(logits) == [7, chosen(logits[1], 1, 0), logits[2].argmax().item(), chosen(logits[3], 3, 0)]


def test_the_journal_has_the_logprobs_that_the_tokens_had_before_their_rows_were_changed():
    batch, outputs = Batch(), [[], [], [0, 0]]
    requests = [(row, request_arguments(2 - row, row, 1.0 - row / 2), outputs[row]) for row in range(3)]
    batch.tell(requests, size=3)
    first = logprobs(3, 300)
    before = first[range(3), batch.tokens(first)].tolist()
    outputs[0].append(5)  # the prompt of row 1 is not yet prefilled, so its first token is drawn again
    batch.tell([(3, None, [])], size=4)
    second = logprobs(4, 300, seed=1)
    after = second[range(4), batch.draw.apply(second.clone()).argmax(-1)].tolist()
    of_row_2, of_row_1, of_row_0 = batch.journal.take([3, 1, 2])
    assert of_row_0 == [before[0], after[0]] and of_row_1 == [after[1]]
    assert of_row_2 == pytest.approx([math.nan, math.nan, after[2]], abs=0, nan_ok=True)
    assert batch.journal.take([1]) == [pytest.approx([math.nan], nan_ok=True)], "what was taken is forgotten"


def test_the_journal_leaves_out_what_was_drawn_beyond_the_end_of_a_response():
    """Steps that are scheduled ahead draw one token more."""
    journal = Journal()
    for count in range(3):
        journal.add(np.array([0]), np.array([count]), torch.tensor([-1.0 - count]))
    assert journal.take([2]) == [[-1.0, -2.0]]
    assert journal.take([]) == []
