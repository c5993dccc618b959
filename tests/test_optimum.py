"""The closed-form optimum against its definition and against every rival."""

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kltutor import optimal_policy

REF = [0.05, 0.15, 0.70, 0.10]
REWARD = [1.0, -0.5, 0.25, 2.0]
INF, NAN = float("inf"), float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def objective(probs, beta, reward=REWARD, ref=REF):
    """E[reward] - beta KL(π ‖ ref), with 0 log 0 = 0, in plain Python."""
    rows = [(p, r, q) for p, r, q in zip(probs, reward, ref, strict=True) if p > 0]
    return sum(p * r for p, r, _ in rows) - beta * sum(p * math.log(p / q) for p, _, q in rows)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_the_optimum_is_the_tilted_reference_with_its_constant(beta):
    logp, log_z = optimal_policy(tensor(REF).log(), tensor(REWARD), beta)
    weights = [q * math.exp(r / beta) for q, r in zip(REF, REWARD, strict=True)]
    assert log_z.item() == pytest.approx(math.log(sum(weights)), rel=1e-13)
    torch.testing.assert_close(logp.exp(), tensor([w / sum(weights) for w in weights]))


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_the_maximum_is_beta_log_z_and_the_gap_of_a_rival_is_beta_times_its_kl(beta):
    logp, log_z = optimal_policy(tensor(REF).log(), tensor(REWARD), beta)
    best = logp.exp().tolist()
    assert objective(best, beta) == pytest.approx(beta * log_z.item(), rel=1e-12)
    for rival in (REF, [0.25] * 4, [0.0, 0.0, 0.0, 1.0], [0.9, 0.0, 0.05, 0.05]):
        gap = sum(p * math.log(p / b) for p, b in zip(rival, best, strict=True) if p > 0)
        assert objective(rival, beta) == pytest.approx(beta * (log_z.item() - gap), abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.floats(0.05, 20),
)
def test_no_rival_beats_the_optimum(reward, ref, rival, beta):
    ref_logp, other = tensor(ref).log_softmax(-1), tensor(rival).softmax(-1)
    logp, log_z = optimal_policy(ref_logp, tensor(reward), beta)
    value = objective(other.tolist(), beta, reward, ref_logp.exp().tolist())
    assert value <= beta * log_z.item() + 1e-9
    assert logp.logsumexp(-1).item() == pytest.approx(0, abs=1e-12)


def test_the_optimum_has_the_support_of_the_reference_also_in_the_gradient():
    reward = tensor([1.0, 50.0, 0.0]).requires_grad_()
    logp, log_z = optimal_policy(tensor([0.4, 0.0, 0.6]).log(), reward, 1.0)
    assert logp[1] == -INF
    assert log_z.item() == pytest.approx(math.log(0.4 * math.e + 0.6))
    (grad,) = torch.autograd.grad(log_z, reward)
    torch.testing.assert_close(grad, logp.detach().exp())  # d log Z / d r = π*/beta


def test_the_gradient_of_log_z_in_the_reward_is_the_optimum_over_beta():
    reward = tensor(REWARD).requires_grad_()
    logp, log_z = optimal_policy(tensor(REF).log(), reward, 0.4)
    torch.testing.assert_close(torch.autograd.grad(log_z, reward)[0], logp.detach().exp() / 0.4)


def test_a_large_beta_stays_at_the_reference_and_a_small_one_takes_the_best():
    near, _ = optimal_policy(tensor(REF).log(), tensor(REWARD), 1e9)
    torch.testing.assert_close(near.exp(), tensor(REF), atol=1e-8, rtol=0)
    greedy, _ = optimal_policy(tensor(REF).log(), tensor(REWARD), 1e-3)
    torch.testing.assert_close(greedy.exp(), tensor([0.0, 0.0, 0.0, 1.0]), atol=1e-12, rtol=0)


def test_each_batch_entry_has_its_own_optimum():
    refs = torch.stack([tensor(REF), tensor(REF[::-1])]).log()
    rewards = torch.stack([tensor(REWARD), 3 * tensor(REWARD)])
    logp, log_z = optimal_policy(refs[:, None], rewards[:, None], 0.7)
    assert logp.shape == (2, 1, 4)
    assert log_z.shape == (2, 1)
    for i in range(2):
        one, z = optimal_policy(refs[i], rewards[i], 0.7)
        torch.testing.assert_close(logp[i, 0], one)
        torch.testing.assert_close(log_z[i, 0], z)


@pytest.mark.parametrize("beta", [0.0, -0.1, NAN, INF])
def test_beta_is_finite_and_above_zero(beta):
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        optimal_policy(tensor(REF).log(), tensor(REWARD), beta)


def test_a_beta_so_small_that_the_tilt_overflows_is_an_error():
    with pytest.raises(ValueError, match=r"reward / beta\[0\] is inf"):
        optimal_policy(tensor(REF).log(), tensor(REWARD), 1e-320)


def test_errors_name_the_argument():
    ref_logp, reward = tensor(REF).log(), tensor(REWARD)
    with pytest.raises(ValueError, match=r"ref_logp\[\] sums to 0.5"):
        optimal_policy(ref_logp - math.log(2), reward, 1.0)
    for value in (NAN, INF, -INF):
        with pytest.raises(ValueError, match=rf"reward\[2\] is {value}"):
            optimal_policy(ref_logp, tensor([0.0, 0.0, value, 0.0]), 1.0)
    for bad in (reward[:1], reward[None], reward.long(), torch.zeros(())):
        with pytest.raises(jaxtyping.TypeCheckError, match="'reward'"):
            optimal_policy(ref_logp, bad, 1.0)
