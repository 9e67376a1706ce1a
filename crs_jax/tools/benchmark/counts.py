"""How many floating-point operations and bytes the work needs, counted by hand.

A multiplication with its addition is two operations. Of a trunk of L layers of width D, a token takes 24 L D^2 (the
four matrix products of a layer, 12 D^2 parameters), and each pair of a token and one it attends to 4 L D (scores and
weighted sum). Attention is counted as the mask has it: a causal row of T tokens has T (T + 1) / 2 pairs. The head
takes 2 D V at each place where a word is predicted and 2 (D + W) N where an item is, W being the width of the items'
contents, and 2 D W at both for the state's projection onto contents. A training pass is three forward ones, and what is
computed again to save memory (rematerialisation) is not counted, nor are norms, softmaxes, gathers, embeddings and
heads of one number.

These are what the work needs: a program that does more, padding or masked attention, shows a lower utilisation.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a policy.

    Attributes:
      layers, width: L and D.
      words: V, words of the vocabulary.
      items, content: N and W.
      act_slots: M + 1, places of a reply where items are predicted.
      bytes_each: of a number in the activations' type.
    """

    layers: int
    width: int
    words: int
    items: int
    content: int
    act_slots: int
    bytes_each: int

    def trunk(self, tokens: int, pairs: int) -> int:
        """Operations of a forward pass of the trunk."""
        return 24 * self.layers * self.width**2 * tokens + 4 * self.layers * self.width * pairs

    def heads(self, words: int, acts: int) -> int:
        """Operations of predicting `words` words and `acts` items."""
        projection = 2 * self.width * self.content * (words + acts)
        return 2 * self.width * self.words * words + 2 * (self.width + self.content) * self.items * acts + projection

    @property
    def trunk_numbers(self) -> int:
        """Parameters of the layers: matrices, biases and norms."""
        return self.layers * (12 * self.width**2 + 13 * self.width)


@dataclasses.dataclass(frozen=True)
class Batch:
    """C contexts of P tokens with G replies of R tokens each."""

    contexts: int
    group: int
    context_tokens: int
    reply_tokens: int

    @property
    def replies(self) -> int:
        """B."""
        return self.contexts * self.group

    @property
    def tokens(self) -> int:
        """Of all contexts, each once, and all replies."""
        return self.contexts * self.context_tokens + self.replies * self.reply_tokens

    @property
    def pairs(self) -> int:
        """Of a token and one that it attends to: itself and what stands before it."""
        P, R = self.context_tokens, self.reply_tokens
        return self.contexts * P * (P + 1) // 2 + self.replies * (R * P + R * (R + 1) // 2)


def trunk_pass(model: Model, batch: Batch) -> int:
    """Operations of reading contexts and replies: the reward model."""
    return model.trunk(batch.tokens, batch.pairs)


def likelihood_pass(model: Model, batch: Batch) -> int:
    """Operations of the replies' likelihoods, forward: reference, actor, and generating token by token."""
    B = batch.replies
    return trunk_pass(model, batch) + model.heads(B * batch.reply_tokens, B * model.act_slots)


def scoring(model: Model, batch: Batch) -> int:
    """Operations of the actor's likelihoods and values, the reference's likelihoods and the reward model's signals."""
    return 2 * likelihood_pass(model, batch) + trunk_pass(model, batch)


def update(model: Model, batch: Batch) -> int:
    """Operations of one update on the batch, forward and backward."""
    return 3 * likelihood_pass(model, batch)


def iteration(model: Model, batch: Batch, epochs: int) -> int:
    """Operations of rollout, scoring and `epochs` passes of updates over the batch."""
    return likelihood_pass(model, batch) + scoring(model, batch) + epochs * update(model, batch)


def sft(model: Model, rows: int, tokens: int, words: int, acts: int) -> int:
    """Operations of a supervised step on `rows` causal rows, with `words` and `acts` predicted in each."""
    pairs = rows * tokens * (tokens + 1) // 2
    return 3 * (model.trunk(rows * tokens, pairs) + model.heads(rows * words, rows * acts))


def decode_bytes(model: Model, batch: Batch) -> float:
    """Bytes that must be read for one token of each reply, averaged over a reply's R steps.

    The layers' parameters and the words table once, keys and values of each context once and of each reply's tokens so
    far, in the activations' type. A group of replies shares its context's keys and values.
    """
    numbers = model.trunk_numbers + model.words * model.width
    kept = batch.contexts * batch.context_tokens + batch.replies * (batch.reply_tokens + 1) / 2
    return model.bytes_each * (numbers + 2 * model.layers * model.width * kept)


def training_bytes(parameters: int) -> int:
    """Float32 bytes of parameters, their gradients and Adam's two moments."""
    return 16 * parameters
