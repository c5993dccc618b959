"""The listed worlds against independent listings, and the tabular policy against its table."""

import itertools

import jaxtyping
import pytest
import torch

from kltutor import TabularPolicy, Task, tasks


def world(**changes):
    fields = {
        "name": "world",
        "words": ("stop", "a", "b"),
        "horizon": 3,
        "prompts": (("say", "a"), ("b", "say")),
        "prompt_probs": (0.7, 0.3),
        "score": lambda prompt, said, ended: float(len(said)),
    }
    return Task(**fields | changes)


def listing(task):
    """Every completion: cut each word sequence of full length at its first end."""
    full = itertools.product(range(len(task.words)), repeat=task.horizon)
    return {seq[: seq.index(0) + 1] if 0 in seq else seq for seq in full}


WORLDS = [
    pytest.param(task, id=task.name)
    for task in (
        world(),
        world(name="one token", horizon=1),
        world(name="one word", words=("stop", "go"), horizon=4),
        tasks.bandit(),
        tasks.small(),
        tasks.phrases(),
    )
]


@pytest.mark.parametrize("task", WORLDS)
def test_the_completions_are_all_there_once_and_none_else(task):
    assert len(set(task.sequences)) == len(task.sequences) == task.size
    assert set(task.sequences) == listing(task)


def test_the_default_task_has_3906_completions_and_the_small_one_121():
    assert tasks.phrases().size == 1 + 5 + 25 + 125 + 625 + 5**5 == 3906
    assert tasks.small().size == 1 + 3 + 9 + 27 + 3**4 == 121
    assert tasks.bandit().size == 3
    assert tasks.bandit((1.0, 2.0)).size == 2


@pytest.mark.parametrize("task", WORLDS)
def test_the_mask_counts_every_chosen_token_with_the_end_among_them(task):
    assert task.tokens.shape == task.mask.shape == (task.size, task.horizon)
    for seq, row, on in zip(task.sequences, task.tokens.tolist(), task.mask.tolist(), strict=True):
        assert on == [t < len(seq) for t in range(task.horizon)]
        assert tuple(row[: len(seq)]) == seq
        assert row[len(seq) :] == [0] * (task.horizon - len(seq))
    ended = [seq for seq in task.sequences if 0 in seq]
    assert all(seq.index(0) == len(seq) - 1 for seq in ended)  # the last counted token is the end


@pytest.mark.parametrize("task", WORLDS)
def test_open_prefixes_are_what_a_next_token_may_follow(task):
    expected = {seq[:t] for seq in listing(task) for t in range(len(seq))}
    assert set(task.open_prefixes) == expected
    assert len(task.open_prefixes) == len(expected)
    lengths = [len(p) for p in task.open_prefixes]
    assert lengths == sorted(lengths)


def test_a_completion_is_read_as_words_without_the_end():
    task = world()
    assert task.read((1, 2, 0)) == (("a", "b"), True)
    assert task.read((2, 2, 2)) == (("b", "b", "b"), False)
    assert task.read((0,)) == ((), True)


def test_prompt_tokens_share_the_vocabulary_and_number_new_words_after_it():
    assert world().prompt_tokens.tolist() == [[3, 1], [2, 3]]


def test_the_gold_reward_is_scored_for_each_prompt_and_completion():
    def score(prompt, said, ended):
        return 10.0 * said.count(prompt[-1]) + len(said) + (0.5 if ended else 0.0)

    task = world(score=score)
    assert task.reward.shape == (2, task.size)
    assert task.reward.dtype == torch.float64
    place = {seq: i for i, seq in enumerate(task.sequences)}
    for prompt, seq, expected in (
        (0, (0,), 0.5),
        (0, (1, 1, 0), 22.5),
        (1, (1, 1, 0), 2.5),
        (0, (2, 1, 2), 13.0),
        (1, (2, 2, 2), 3.0),
    ):
        assert task.reward[prompt, place[seq]] == expected


def test_the_reward_of_the_phrases_is_the_one_sentence_that_states_it():
    task = tasks.phrases()
    suits = {"tea": ["warm", "sweet"], "snow": ["cold", "bright"], "noon": ["warm", "bright"]}
    for p, prompt in enumerate(task.prompts):
        for i, seq in enumerate(task.sequences):
            said = [task.words[t] for t in seq if t]
            points = sum(word in said for word in suits[prompt[-1]])
            repetitions = sum(word in said[:t] for t, word in enumerate(said))
            expected = points - repetitions / 2 - (seq[-1] != 0)
            assert task.reward[p, i] == expected, (prompt, said)


def test_an_arm_of_the_bandit_pays_its_reward():
    assert tasks.bandit((0.25, -1.0, 4.0, 2.0)).reward.tolist() == [[0.25, -1.0, 4.0, 2.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ("stop",)}, "words are"),
        ({"words": ("stop", "a", "a")}, "words are"),
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": -2}, "horizon is -2"),
        ({"prompts": (), "prompt_probs": ()}, "prompts are"),
        ({"prompts": ((), ())}, "prompts are"),
        ({"prompts": (("say",), ("say", "a"))}, "prompts are"),
        ({"prompts": (("say",), ("say",))}, "prompts are.*different"),
        ({"prompt_probs": (1.0,)}, "prompt_probs are"),
        ({"prompt_probs": (0.7, 0.2)}, "prompt_probs are"),
        ({"prompt_probs": (1.5, -0.5)}, "prompt_probs are"),
        ({"prompt_probs": (float("nan"), 1.0)}, "prompt_probs are"),
        ({"prompt_probs": (0.5, float("nan"))}, "prompt_probs are"),
    ],
)
def test_a_world_that_cannot_be_listed_or_asked_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        world(**changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [("words", ["stop", "a"]), ("horizon", 2.5), ("prompts", ("say", "a")), ("score", 1.0), ("name", None)],
)
def test_a_field_of_the_wrong_kind_is_named(field, value):
    with pytest.raises(jaxtyping.TypeCheckError, match=f"'{field}'"):
        world(**{field: value})


def table(task):
    """Logits that differ everywhere, and the same by (prompt, prefix)."""
    shape = (len(task.prompts), len(task.open_prefixes), len(task.words))
    logits = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return logits, {
        (p, prefix): logits[p, i]
        for p in range(len(task.prompts))
        for i, prefix in enumerate(task.open_prefixes)
    }


@pytest.mark.parametrize("task", WORLDS[:5])
def test_a_tabular_policy_gives_each_prefix_its_own_row_and_zeros_elsewhere(task):
    logits, rows = table(task)
    policy = TabularPolicy(task, logits)
    length = task.prompt_tokens.shape[1]
    zeros = torch.zeros(len(task.words), dtype=torch.float64)
    for p, prompt in enumerate(task.prompt_tokens):
        tokens = torch.cat([prompt.expand(task.size, -1), task.tokens], 1)
        out = policy(tokens)
        assert out.shape == (*tokens.shape, len(task.words))
        for seq, answer in zip(task.sequences, out, strict=True):
            for t in range(tokens.shape[1]):
                chosen = t - length + 1  # tokens of the completion that position t has seen
                prefix = seq[: max(chosen, 0)]
                expected = zeros if chosen < 0 or chosen >= len(seq) else rows[p, prefix]
                assert torch.equal(answer[t], expected), (p, seq, t)


def test_a_tabular_policy_answers_a_batch_of_mixed_prompts_row_by_row():
    task = world()
    policy = TabularPolicy(task, table(task)[0])
    tokens = torch.tensor([[2, 3, 1, 2], [3, 1, 2, 2], [3, 1, 0, 0], [2, 3, 2, 1]])
    together = policy(tokens)
    for row, answer in zip(tokens, together, strict=True):
        assert torch.equal(policy(row[None])[0], answer)
    assert policy(tokens[:, :2]).shape == (4, 2, 3)  # prompts alone
    assert policy(tokens[:0]).shape == (0, 4, 3)


def test_tokens_that_the_task_does_not_know_are_refused():
    policy = TabularPolicy(world(), table(world())[0])
    for tokens in ([[3, 2, 1]], [[3]], [[3, 1], [1, 3]]):
        with pytest.raises(ValueError, match="tokens do not begin with one of the 2 prompts"):
            policy(torch.tensor(tokens))
    for token in (-100, -1, 3):
        with pytest.raises(ValueError, match="tokens after the prompt lie outside the vocabulary"):
            policy(torch.tensor([[3, 1, token]]))
    with pytest.raises(jaxtyping.TypeCheckError, match="'tokens'"):
        policy(torch.tensor([[3.0, 1.0]]))
    three = world(prompts=(("say", "a", "b"),), prompt_probs=(1.0,))
    with pytest.raises(ValueError, match="tokens do not begin"):
        TabularPolicy.random(three, torch.Generator())(torch.tensor([[3, 1]]))


def test_a_table_of_another_shape_or_dtype_is_refused():
    task = world()
    for shape in ((2, 7, 2), (2, 6, 3), (1, 7, 3)):
        with pytest.raises(ValueError, match=r"logits have shape .* \(2, 7, 3\) is expected for world"):
            TabularPolicy(task, torch.zeros(shape))
    with pytest.raises(jaxtyping.TypeCheckError, match="'logits'"):
        TabularPolicy(task, torch.zeros(2, 7, 3, dtype=torch.long))


def test_a_policy_owns_its_logits():
    task = tasks.bandit()
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    policy = TabularPolicy(task, logits)
    assert policy.logits.is_leaf
    with torch.no_grad():
        policy.logits += 1
    assert logits.tolist() == [[[0.0, 0.0, 0.0]]]


def test_a_random_policy_is_the_generators_and_scales_with_its_spread():
    task = world()
    draw = {
        scale: TabularPolicy.random(task, torch.Generator().manual_seed(3), scale).logits
        for scale in (0.0, 1.0, 2.5)
    }
    assert draw[1.0].dtype == torch.float64
    expected = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(draw[1.0], expected)
    assert torch.equal(draw[2.5], 2.5 * expected)
    assert not draw[0.0].any()
