"""The attack on tokens against a plain loop with one-hot vectors; independence of its problems."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dori_fast as df
from dori_fast.attack import Tokens
from dori_fast.attack.draws import Draws, stream
from dori_fast.attack.tokens import draw
from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask
from dori_fast.ops.simplex import capped_simplex_project as project

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]
IDS = ["astronaut", "cat", 7]


def bisected(point):
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (point - middle).clamp(0, 1).sum() > 1 else (low, middle)
    return (point - low).clamp(0, 1)


def test_projection_is_the_capped_simplexs():
    points = torch.randn(40, 30, dtype=torch.float64) * torch.logspace(-3, 1, 40)[:, None]
    found = project(points)
    torch.testing.assert_close(found, torch.stack([bisected(p) for p in points]))
    torch.testing.assert_close(found.sum(-1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(project(found), found)
    points[:, ::2] = -torch.inf
    assert (project(points)[:, ::2] == 0).all()


def test_draws_follow_the_weights():
    weights = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    found = draw(weights.expand(20000, -1), torch.rand(20000, dtype=torch.float64))
    share = torch.bincount(found, minlength=6) / 20000
    assert (share[weights == 0] == 0).all() and (share - weights).abs().max() < 0.02
    assert int(draw(weights, torch.tensor(0.0, dtype=torch.float64))) == 1


def plain_attack(model, image, prompt, problem, *, steps, batch, k, lr, decay):
    """One-hot vectors times the whole table, torch's Adam, and the text model's own parts."""
    tokenizer, encoder, x_0 = model.tokenizer, model.text_encoder, model.latents(image[None])
    table, special = encoder.get_input_embeddings().weight, tokenizer.all_special_ids
    allowed = torch.ones(len(table), dtype=torch.bool)
    allowed[special] = False
    u = (allowed.double() / allowed.sum()).repeat(k, 1).requires_grad_()
    adam = torch.optim.Adam([u], lr=lr, weight_decay=decay)
    draws, random = Draws(model, [problem], 0, batch), stream("tokens", 0, problem)
    words = tokenizer(prompt)["input_ids"][1:-1]
    ids = [tokenizer.bos_token_id, *[0] * k, *words]
    ids += [tokenizer.eos_token_id] * (77 - len(ids))
    losses = []
    for _ in range(steps):
        cumulated = u.detach().cumsum(-1)
        uniform = torch.rand(k, generator=random, dtype=torch.float64) * cumulated[:, -1]
        tokens = [int((c > r).nonzero()[0]) for c, r in zip(cumulated, uniform, strict=True)]
        one_hot = F.one_hot(torch.tensor(tokens), len(table)).double().requires_grad_()
        looked_up = table[torch.tensor(ids)]
        mixed = torch.cat([looked_up[:1], one_hot @ table, looked_up[1 + k :]])
        hidden = encoder.embeddings(inputs_embeds=mixed[None])
        causal = torch.full((77, 77), -torch.inf, dtype=torch.float64).triu(1)[None, None]
        hidden = encoder.encoder(inputs_embeds=hidden, attention_mask=causal).last_hidden_state
        text = encoder.final_layer_norm(hidden)
        timesteps, noise = (x[0] for x in draws.take([0]))
        a = model.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        eps = model.unet(x_t, timesteps, text.expand(batch, -1, -1)).sample
        loss = F.mse_loss(eps, noise)
        (slope,) = torch.autograd.grad(loss, one_hot)
        u.grad = slope.clamp(-1, 1)
        adam.step()
        with torch.no_grad():
            free = torch.stack([bisected(row) for row in u[:, allowed]])
            u.zero_()
            u[:, allowed] = free
        losses.append(loss.detach())
    return u.argmax(-1), torch.stack(losses)


@pytest.mark.parametrize("batch", [4, 20])
def test_it_is_the_plain_loop(model64, images, batch):
    """Losses depend on the drawn tokens, so one wrong gradient would change them."""
    attack = Tokens(steps=6, draws=batch, tokens=3, lr=0.05)
    result = attack.run(model64, PROMPTS, images, ids=IDS)
    for p in range(3):
        options = {"steps": 6, "batch": batch, "k": 3, "lr": 0.05, "decay": 0.1}
        tokens, losses = plain_attack(model64, images[p], PROMPTS[p], IDS[p], **options)
        torch.testing.assert_close(result.losses[:, p], losses, rtol=1e-8, atol=1e-8)
        assert torch.equal(result.tokens[p], tokens)
    assert result.evaluations.tolist() == [6 * batch] * 3


def test_an_answer_depends_on_no_neighbour(model, images):
    attack = Tokens(steps=4, draws=4)
    together = attack.run(model, PROMPTS, images, ids=IDS)
    for p in range(3):
        alone = attack.run(model, [PROMPTS[p]], images[p, None], ids=[IDS[p]])
        assert torch.equal(alone.ids[0], together.ids[p])
        assert torch.equal(alone.losses[:, 0], together.losses[:, p])


def test_the_condition_is_that_of_the_tokens(model, images):
    result = Tokens(steps=3, draws=4, tokens=4, checkpoints=[0, 3]).run(model, PROMPTS, images)
    with torch.no_grad():
        own = model.text_encoder(result.ids)[0]
    torch.testing.assert_close(result.condition(model).embeddings, own, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.checkpoints[3], result.ids)
    assert not torch.equal(result.checkpoints[0], result.ids)
    assert torch.equal(result.ids[:, 1:5], result.tokens)
    assert not torch.isin(result.tokens, torch.tensor(model.tokenizer.all_special_ids)).any()
    texts = result.prompts(model)
    assert all(text.endswith(prompt) for text, prompt in zip(texts, PROMPTS, strict=True))
    with pytest.raises(UsageError, match="no checkpoint at step 1; kept are 0, 3"):
        result.condition(model, 1)


def test_a_long_prompt_loses_its_end(model, images):
    result = Tokens(steps=1, draws=2, tokens=5).run(model, ["the cat " * 60], images[:1])
    plain = model.tokenizer("the cat " * 60)["input_ids"]
    assert result.ids[0, 6:76].tolist() == plain[1:71]
    assert int(result.ids[0, 76]) == model.tokenizer.eos_token_id


def test_each_problem_under_its_own_mask(model64, images):
    widths = model64.engine.value_widths
    masks = NeuronMask({name: (torch.rand(3, w) > 0.5).float() for name, w in widths.items()})
    attack = Tokens(steps=3, draws=4)
    together = attack.run(model64.masked(masks), PROMPTS, images, ids=IDS)
    plain = attack.run(model64, PROMPTS, images, ids=IDS)
    assert (plain.losses - together.losses).abs().min() > 1e-9
    for p in range(3):
        view = model64.masked(masks[p])
        alone = attack.run(view, [PROMPTS[p]], images[p, None], ids=[IDS[p]])
        torch.testing.assert_close(together.losses[:, p], alone.losses[:, 0])


def test_a_problem_that_stops_leaves_the_others_as_they_are(model, images):
    whole = Tokens(steps=6, draws=4, checkpoints=[2]).run(model, PROMPTS, images)
    attack = Tokens(steps=6, draws=4, stop=lambda at: at.problems == 1, check_every=2)
    result = attack.run(model, PROMPTS, images)
    assert result.steps.tolist() == [6, 2, 6] and result.evaluations.tolist() == [24, 8, 24]
    assert torch.equal(result.ids[[0, 2]], whole.ids[[0, 2]])
    assert torch.equal(result.ids[1], whole.checkpoints[2][1])


def test_float16_runs(tiny_directory, images):
    half = df.load(tiny_directory, device="cpu", dtype="float16", batch_size=8)
    result = Tokens(steps=2, draws=4).run(half, PROMPTS, images)
    assert result.steps.tolist() == [2, 2, 2] and result.losses.isfinite().all()


def test_arguments_are_checked(model, images, tiny_sdxl_directory):
    for options in ({"tokens": 0}, {"weight_decay": -1.0}, {"steps": 0}):
        with pytest.raises(UsageError, match="attack"):
            Tokens(**options)
    with pytest.raises(UsageError, match="3 images but 2 prompts"):
        Tokens(steps=1).run(model, PROMPTS[:2], images)
    with pytest.raises(UsageError, match=r"tokens must be 1\.\.75"):
        Tokens(steps=1, tokens=76).run(model, PROMPTS, images)
    xl = df.load(tiny_sdxl_directory, device="cpu", batch_size=8)
    with pytest.raises(UsageError, match="SDXL"):
        Tokens(steps=1).run(xl, PROMPTS, images)
