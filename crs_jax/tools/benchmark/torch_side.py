"""The same work in torch and transformers, written as one would there, for comparison in the same run.

GPT-2 is transformers' `GPT2Model` with scaled-dot-product attention, generation its `generate` with the KV cache and
`num_return_sequences` for groups. Shapes are the cell's, every reply has its full length, tokens are counted as on the
other side. On a GPU training is bfloat16 autocast over float32 parameters with the fused AdamW, and generation, the
reference and the reward model are bfloat16 copies; on a CPU all is float32. Log-probabilities are taken at reply tokens
only, from one pass that also gives the values, without gradients where none are needed. Layers are checkpointed where
`config.model.remat` has them so.

What this side is spared: evidence and item tables (supervised steps have a table of items, without evidence), entropies
in the updates, metrics. What it does more: replies to one context do not share a row, since attention there has no mask
for it without giving up its fast kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from crs_jax.data import tokenizer
from crs_jax.data.byte_bpe import GPT2_WORDS
from crs_jax.data.packing import slots_of
from crs_jax.tools.benchmark.timing import Patience, repeat

CONTROLS = len(tokenizer.CONTROLS)


def make_model(config: ConfigDict) -> Any:
    """A GPT-2 of the config's size with random weights, float32, on the CPU."""
    m = config.model
    words = GPT2_WORDS if config.tokenizer.kind == "gpt2" else config.tokenizer.vocab_size
    settings: Any = {
        "n_embd": m.width, "n_layer": m.layers, "n_head": m.heads, "n_positions": m.positions,
        "vocab_size": words + CONTROLS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "bos_token_id": None, "eos_token_id": None, "attn_implementation": "sdpa",
    }  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**settings))


class Side:
    """Models and random inputs of one cell on a device.

    Args:
      config: the cell's.
      device: cuda or cpu.
      half: bfloat16, as the module says.
    """

    def __init__(self, config: ConfigDict, device: str, half: bool) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, self.half = config, device, half
        c, d = config.ppo, config.data
        self.P, self.R, self.G, self.C = d.context_tokens, d.reply_tokens, c.group, c.contexts
        self.policy = make_model(config).to(device)
        if config.model.remat:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.vocabulary = self.policy.config.vocab_size
        self.value = nn.Linear(config.model.width, 1).to(device)
        self.prompts = torch.randint(self.vocabulary - CONTROLS, (self.C, self.P), device=device)

    def autocast(self) -> Any:
        """Bfloat16 products, where asked for."""
        return torch.autocast(self.device, torch.bfloat16) if self.half else contextlib.nullcontext()

    def fixed_copy(self, model: GPT2LMHeadModel | None = None) -> GPT2LMHeadModel:
        """A model that does not learn: a copy, in bfloat16 where asked for."""
        copy = make_model(self.config).to(self.device)
        copy.load_state_dict((model or self.policy).state_dict())
        return copy.to(torch.bfloat16 if self.half else torch.float32).eval().requires_grad_(False)

    def optimizer(self, *modules: nn.Module) -> torch.optim.Optimizer:
        """AdamW over the modules' parameters."""
        parameters = [p for module in modules for p in module.parameters()]
        return torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def generate(self, model: GPT2LMHeadModel) -> Tensor:
        """Contexts and sampled replies, `[C * G, P + R]`."""
        model.eval()
        return model.generate(
            self.prompts, attention_mask=torch.ones_like(self.prompts), do_sample=True, top_k=0, top_p=1.0,
            temperature=self.config.ppo.temperature, max_new_tokens=self.R, num_return_sequences=self.G,
            use_cache=True, pad_token_id=self.vocabulary - 1,
        )  # fmt: skip

    def hidden(self, model: GPT2LMHeadModel, tokens_BT: Tensor) -> Tensor:
        """States that predict the reply's tokens, `[B, R, D]`."""
        return model.transformer(input_ids=tokens_BT, use_cache=False).last_hidden_state[:, -self.R - 1 : -1]

    def logp(self, model: GPT2LMHeadModel, hidden_BRD: Tensor, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities of the reply's tokens, `[B, R]`."""
        logits = model.lm_head(hidden_BRD).float()
        return -F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, -self.R :].flatten(), reduction="none").view(
            tokens_BT.shape[0], self.R
        )

    def scores(self, reference: GPT2LMHeadModel, reward: GPT2LMHeadModel, tokens_BT: Tensor, rows: int) -> Any:
        """Old log-probabilities and values, the reference's log-probabilities, and rewards; `rows` at a time."""
        self.policy.eval()
        out = []
        with torch.no_grad(), self.autocast():
            for some in tokens_BT.split(rows):
                hidden = self.hidden(self.policy, some)
                logp, value = self.logp(self.policy, hidden, some), self.value(hidden)[..., 0].float()
                other = self.logp(reference, self.hidden(reference, some), some)
                read = reward.transformer(input_ids=some, use_cache=False).last_hidden_state[:, -1]
                out.append((logp, value, other, read.float().mean(-1)))
        return [torch.cat(parts) for parts in zip(*out, strict=True)]

    def update(self, optimizer: torch.optim.Optimizer, mini: tuple[Tensor, ...]) -> None:
        """One clipped update on (tokens, old log-probabilities, old values, advantages, returns)."""
        tokens_BT, old, old_value, advantage, returns = mini
        c = self.config.ppo
        with self.autocast():
            hidden = self.hidden(self.policy, tokens_BT)
            logp = self.logp(self.policy, hidden, tokens_BT)
            value = self.value(hidden.detach())[..., 0].float()
        ratio = (logp - old).exp()
        policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - c.clip, 1 + c.clip)).mean()
        near = old_value + (value - old_value).clamp(-c.value_clip, c.value_clip)
        value_loss = 0.5 * torch.max((value - returns) ** 2, (near - returns) ** 2).mean()
        (policy_loss + c.value_coef * value_loss).backward()
        self.step(optimizer, self.policy, self.value)

    def step(self, optimizer: torch.optim.Optimizer, *modules: nn.Module) -> None:
        """Clips the gradient's norm and moves."""
        nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], self.config.ppo.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def rollout(side: Side) -> tuple[Callable[[], Any], int]:
    """`generate` on a copy in the activations' type."""
    model = side.fixed_copy()
    return lambda: side.generate(model), side.C * side.G * side.R


def random_batch(side: Side, replies: int) -> Tensor:
    return torch.randint(side.vocabulary - CONTROLS, (replies, side.P + side.R), device=side.device)


def scoring(side: Side) -> tuple[Callable[[], Any], int]:
    """The three passes without gradients."""
    tokens = random_batch(side, side.C * side.G)
    reference, reward = side.fixed_copy(), side.fixed_copy()
    return lambda: side.scores(reference, reward, tokens, 64), counted(side, side.C)


def counted(side: Side, contexts: int) -> int:
    """Tokens of contexts, each once, and of their replies."""
    return contexts * (side.P + side.G * side.R)


def update(side: Side) -> tuple[Callable[[], Any], int]:
    """One update on one minibatch."""
    contexts = side.C // side.config.ppo.minibatches
    tokens = random_batch(side, contexts * side.G)
    noise = [torch.randn(len(tokens), side.R, device=side.device) for _ in range(3)]
    old = -torch.full_like(noise[0], 10.0)
    optimizer = side.optimizer(side.policy, side.value)
    side.policy.train()
    return lambda: side.update(optimizer, (tokens, old, *noise)), counted(side, contexts)


def iteration(side: Side) -> tuple[Callable[[], Any], int]:
    """Rollout, scores, advantages by GAE, and epochs of minibatches."""
    c = side.config.ppo
    reference, reward = side.fixed_copy(), side.fixed_copy()
    generator = side.fixed_copy() if side.half else side.policy
    optimizer = side.optimizer(side.policy, side.value)
    rows = side.C * side.G // c.minibatches

    def run() -> None:
        if side.half:
            with torch.no_grad():
                torch._foreach_copy_(list(generator.parameters()), list(side.policy.parameters()))
        tokens = side.generate(generator)
        old, value, other, score = side.scores(reference, reward, tokens, rows)
        reward_BR = -c.word_kl * (old - other)
        reward_BR[:, -1] += score
        advantage, following = torch.zeros_like(value), torch.zeros_like(score)
        for r in reversed(range(side.R)):
            after = value[:, r + 1] if r + 1 < side.R else 0.0
            following = reward_BR[:, r] + c.discount * after - value[:, r] + c.discount * c.gae_lambda * following
            advantage[:, r] = following
        returns = advantage + value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        side.policy.train()
        for _ in range(c.epochs):
            for some in torch.randperm(len(tokens), device=side.device).split(rows):
                side.update(optimizer, tuple(a[some] for a in (tokens, old, value, advantage, returns)))

    return run, counted(side, side.C)


def sft(side: Side) -> tuple[Callable[[], Any], int]:
    """A supervised step: words predicted at two thirds of the places, items at a sixth."""
    o, config = side.config.sft, side.config
    R, T, D = o.rows, o.row_tokens, config.model.width
    A, W = slots_of(T, config.data.act_items)
    tokens = torch.randint(side.vocabulary - CONTROLS, (R, T), device=side.device)
    items = nn.Linear(D, config.simulator.catalogue_size).to(side.device)
    word_at, act_at = (torch.rand(R, T, device=side.device).argsort(1)[:, :n].sort(1).values for n in (W, A))
    word = torch.randint(side.vocabulary - CONTROLS, (R * W,), device=side.device)
    act = torch.randint(config.simulator.catalogue_size, (R * A,), device=side.device)
    optimizer = side.optimizer(side.policy, items)
    side.policy.train()

    def run() -> None:
        with side.autocast():
            hidden = side.policy.transformer(input_ids=tokens, use_cache=False).last_hidden_state
            words, acts = (hidden.gather(1, at[..., None].expand(-1, -1, D)).flatten(0, 1) for at in (word_at, act_at))
            word_logits, act_logits = side.policy.lm_head(words), items(acts)
        (F.cross_entropy(word_logits.float(), word) + F.cross_entropy(act_logits.float(), act)).backward()
        side.step(optimizer, side.policy, items)

    return run, R * T


PARTS = {"rollout": rollout, "scoring": scoring, "update": update, "iteration": iteration, "sft": sft}


def run(part: str, config: ConfigDict, device: str, half: bool, patience: Patience) -> dict[str, Any]:
    """Times a part."""
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work, tokens = PARTS[part](Side(config, device, half))

    def once() -> None:
        work()
        if on_gpu:
            torch.cuda.synchronize()

    found = repeat(once, patience) | {"tokens": tokens}
    return found | ({"device_peak_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {})
