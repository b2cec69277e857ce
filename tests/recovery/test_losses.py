"""The losses of the recovery against autograd on full logits."""

import pytest
import torch
import torch.nn.functional as F

from pruneengine.model.loss import IGNORED, token_nll
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.distill import distill_loss, teacher_targets
from pruneengine.recovery.head_loss import head_loss
from pruneengine.recovery.objective import Objective
from tests.helpers.tiny import tiny_model, tiny_tokens

M, H, V = 11, 24, 61
OPTIONS = [{}, {"scale": 0.25}, {"softcap": 1.5, "scale": 3.0}]


def setup(seed=0):
    torch.manual_seed(seed)
    return torch.randn(M, H, dtype=torch.float64), torch.nn.Linear(H, V, dtype=torch.float64), torch.randint(V, (M,))


def full_logits(hidden, head, scale=1.0, softcap=None):
    logits = head(hidden) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.mark.parametrize("options", OPTIONS)
def test_head_loss_is_cross_entropy_with_its_gradient(options):
    hidden, head, targets = setup()
    targets[3] = IGNORED
    plain, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = F.cross_entropy(full_logits(plain, head, **options), targets, reduction="sum")
    (0.3 * expected).backward()
    loss = head_loss(ours, head, targets, chunk=4, **options)
    (0.3 * loss).backward()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-6, atol=1e-9)


def coarse_divergence(student, teacher, topk, temperature):
    """The module's formula written out on full logits."""
    p, log_q = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    loss = 0.0
    for p_row, log_q_row in zip(p, log_q, strict=True):
        likely = p_row.topk(topk).indices
        rest = torch.ones(len(p_row), dtype=torch.bool)
        rest[likely] = False
        loss += (p_row[likely] * (p_row[likely].log() - log_q_row[likely])).sum()
        if rest.any():
            loss += p_row[rest].sum() * (p_row[rest].sum().log() - log_q_row[rest].logsumexp(0))
    return loss * temperature**2


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("topk", [1, 7, V])
def test_distillation_is_the_coarse_divergence_with_its_gradient(topk, options):
    hidden, head, _ = setup()
    dense, dense_head, _ = setup(seed=1)
    teacher = full_logits(dense, dense_head).detach()
    plain, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = coarse_divergence(full_logits(plain, head, **options), teacher, topk, temperature=1.7)
    expected.backward()
    loss = distill_loss(ours, head, teacher_targets(dense, dense_head, topk, 1.7, chunk=3), 1.7, chunk=4, **options)
    loss.backward()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-7, atol=1e-9)
    if topk == V:
        q = (full_logits(hidden, head, **options) / 1.7).log_softmax(-1)
        full = F.kl_div(q, (teacher / 1.7).softmax(-1), reduction="sum") * 1.7**2
        torch.testing.assert_close(loss, full.float(), rtol=1e-5, atol=1e-6)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    hidden, head, _ = setup()
    ours = hidden.clone().requires_grad_()
    loss = distill_loss(ours, head, teacher_targets(hidden, head, 5, 2.0), 2.0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-9
    assert float(ours.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_objective_mixes_both_losses_over_predicted_tokens_alone(share):
    student, teacher, tokens = tiny_model(), tiny_model(seed=3), tiny_tokens(3, 12)
    labels = tokens.clone()
    labels[:, :4] = IGNORED
    config = RecoverConfig(distill_weight=share, distill_temperature=1.5, distill_topk=9)
    loss = Objective(student, config, teacher)(tokens, labels)
    chosen = labels[:, 1:] != IGNORED
    logits = student(input_ids=tokens).logits[:, :-1][chosen].double()
    dense = teacher(input_ids=tokens).logits[:, :-1][chosen].double()
    token_loss = F.cross_entropy(logits, labels[:, 1:][chosen], reduction="sum")
    expected = (1 - share) * token_loss + share * coarse_divergence(logits, dense, 9, 1.5)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_validation_is_the_token_loss_and_another_vocabulary_is_refused():
    model, tokens = tiny_model(), tiny_tokens(2, 10)
    total, count = Objective(model, RecoverConfig()).nll(tokens, tokens)
    hidden = model.model(input_ids=tokens).last_hidden_state[:, :-1]
    assert count == 18
    assert total == pytest.approx(float(token_nll(hidden, model.lm_head, tokens[:, 1:]).sum()), rel=1e-6)
    with pytest.raises(ValueError, match="teacher's vocabulary has 50 tokens, the model's 97"):
        Objective(model, RecoverConfig(), tiny_model(vocab_size=50))


def test_under_autocast_both_losses_stay_close():
    student, teacher, tokens = tiny_model(), tiny_model(seed=3), tiny_tokens(3, 12)
    exact = Objective(student, RecoverConfig(), teacher)(tokens, tokens)
    objective = Objective(student, RecoverConfig(), teacher, torch.bfloat16)
    loss = objective(tokens, tokens)
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) != float(exact.detach())
    torch.testing.assert_close(loss, exact, rtol=3e-2, atol=0)
    assert student.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
