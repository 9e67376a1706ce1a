"""What rounding explains of a gap between log-probs, and what it does not, in the types and depths that are trained."""

import functools
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crs_jax.features.context import ContextFeatures
from crs_jax.inputs.task import split_model
from crs_jax.models import gpt2, transformer
from crs_jax.models.gpt2 import GPT2Config, Trunk
from crs_jax.models.layout import Layout
from crs_jax.models.policy import Policy
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.forward import policy_pass
from crs_jax.rl.sampling import sample
from crs_jax.rl.scoring import token_masks
from crs_jax.training.checks import SelfCheckError, check_gaps, gaps, logit_scales, noise_of

WORDS, ITEMS = 500, 60
LAYOUT = Layout(WORDS, WORDS + 6, ITEMS, 2, *range(WORDS, WORDS + 6))
C, G, R, P = 4, 6, 14, 16


def contexts() -> Contexts:
    rng = np.random.default_rng(0)
    prompt_CP = rng.integers(0, WORDS, (C, P), np.int32)
    prompt_CP[:, -3:] = LAYOUT.end, LAYOUT.recommender, LAYOUT.rec
    mask_CP = np.arange(P) >= np.array([0, 7, 4, 10])[:, None]
    none, nothing = np.full((C, 1), -1, np.int32), np.zeros((C, 1))
    vectors_CE = rng.normal(size=(C, 8)) / 8**0.5
    features = ContextFeatures(
        vectors_CE, np.zeros((C, 0)), none, none, none, nothing, none, nothing, named_mean=vectors_CE
    )
    made = Contexts(np.where(mask_CP, prompt_CP, LAYOUT.pad), mask_CP, features)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32 if a.dtype == float else a.dtype), made)


class Model:
    """A random policy with logits of the given standard deviation, and compiled passes with faults of given strength.

    With strength 0 the numbers are those of the program without faults.
    """

    def __init__(self, layers: int, width: int, dtype: str, spread: float):
        content_NE = np.random.default_rng(1).normal(size=(ITEMS, 8)).astype(np.float32)
        config = GPT2Config(layers, width, width // 64, 64, dtype=dtype)
        policy = Policy(config, LAYOUT, content_NE, rngs=nnx.Rngs(params=jax.random.key(0)))
        policy.trunk.final_scale[...] *= spread / (0.02 * width**0.5)
        self.graph, self.params, self.frozen = split_model(policy)
        self.config = SimpleNamespace(layers=layers, dtype=dtype, matmul="float32")
        self.contexts = contexts()
        self.sampled, self.scored = jax.jit(self._sample), jax.jit(self._score)
        self.scales = jax.jit(functools.partial(logit_scales, self.graph))

    def _sample(self, params, temperature, position, shift):
        """`position` is added to the positions of what is decoded; the prompt's cache is rolled by `shift` slots."""
        decode = Trunk.decode

        def faulty(self, x_BD, position_B, prompt, *more):
            prompt = jax.tree.map(lambda a: jnp.roll(a, shift, 3), prompt)
            return decode(self, x_BD, position_B + position, prompt, *more)

        with mock.patch.object(Trunk, "decode", faulty):
            policy, given = nnx.merge(self.graph, params, self.frozen), self.contexts
            return sample(
                policy, given.prompt_CP, given.mask_CP, jax.random.key(1), group=G, reply_tokens=R,
                features=given.features, temperature=temperature, block=7,
            )  # fmt: skip

    def _score(self, params, replies, temperature, rate):
        """With dropout of `rate`."""
        call, numbers = Trunk.__call__, iter(range(100))

        def dropout(x, _, key):
            keep = jax.random.bernoulli(jax.random.fold_in(key, next(numbers)), 1.0 - rate, x.shape)
            return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)

        def faulty(self, x, position, mask, key=None):
            return call(self, x, position, mask, jax.random.key(3))

        of_all, of_blocks = (mock.patch.object(module, "dropout", dropout) for module in (transformer, gpt2))
        with of_all, of_blocks, mock.patch.object(Trunk, "__call__", faulty):
            found = policy_pass(self.graph, params, self.frozen, self.contexts, replies, temperature)[0]
        split = token_masks(replies.tokens_BR, replies.mask_BR, LAYOUT)
        return gaps(found.logp_BR, split, sampler=replies.logp_BR), found

    def check(self, temperature=1.0, sampler=1.0, position=0, shift=0, rate=0.0):
        """The self-check of sampler and scorer; faults: a factor on the sampler's temperature, and those above."""
        replies = self.sampled(self.params, temperature * sampler, position, shift)
        metrics, found = self.scored(self.params, replies, temperature, rate)
        scales = self.scales(self.params, self.frozen, self.contexts, temperature)
        check_gaps("sampler", "gap", {k: float(v) for k, v in metrics.items()}, scales, noise_of(self.config))
        return metrics, scales, found, replies


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request):
    """Peaked logits: a standard deviation of 3 over 500 words."""
    return Model(4, 128, request.param, 3.0)


def is_as_derived(model, metrics, scales) -> bool:
    """Whether a healthy gap is what rounding to bfloat16 explains, not far below; float32's sums round besides."""
    rms = float(metrics["check/sampler/word/rms"])
    if model.config.dtype == "float32":
        return 0 < rms < 1e-5
    noise = 2 * noise_of(model.config) * float(scales["word"].spread) * float(metrics["check/sampler/word/rest"])
    return 0.25 * noise < rms < 1.5 * noise


FAULTS = [{"sampler": 0.8}, {"sampler": 1.25}, {"position": 1}, {"shift": 1}, {"rate": 0.1}]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_healthy_model_passes(model, temperature):
    metrics, scales, found, replies = model.check(temperature)
    entropy = np.asarray(found.entropy_BR)[np.asarray(token_masks(replies.tokens_BR, replies.mask_BR, LAYOUT).word_BR)]
    assert 0.05 < entropy.mean() < 0.6 * np.log(WORDS)
    assert 2.0 < float(scales["word"].spread) * temperature < 4.0
    assert is_as_derived(model, metrics, scales)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_does_not_pass(model, fault):
    for temperature in (1.0, 0.7):
        with pytest.raises(SelfCheckError, match=r"self-check at ppo iteration 0: gap, .*: expected 0 within"):
            model.check(temperature, **fault)


def test_logits_are_divided_by_the_temperature(model):
    """At 1e-6 a rounding error of a logit is a million times as large in nats: no fault of the sampler."""
    model.check(1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twelve_layers_of_768(dtype):
    deep = Model(12, 768, dtype, 3.0)
    for temperature in (1.0, 0.7):
        metrics, scales, *_ = deep.check(temperature)
        assert is_as_derived(deep, metrics, scales)
        for fault in FAULTS:
            with pytest.raises(SelfCheckError):
                deep.check(temperature, **fault)
    deep.check(1e-6)
