"""The Python API: a finished run that recommends, replies and scores replies.

A dialogue is what was said so far, oldest first: a list of (role, text) pairs, of the dicts with `role` and `content`
that chat software uses, or of `Turn` records. Roles are `seeker` or `user`, and `recommender` or `assistant`; messages
of `system` are left out, since the models follow no instructions. A text can be a list of text parts. Titles in it are
linked to the catalogue (`data/titles.py`); nothing else in it has a meaning beyond its words.
"""

from __future__ import annotations

import functools
import inspect
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Turn
from crs_jax.data.messages import Message, read_dialogue, read_message
from crs_jax.evaluation.policies import generate, judge_replies, ranking_scores
from crs_jax.inputs.contexts import contexts_at
from crs_jax.rl.contexts import Contexts
from crs_jax.rl.frozen_models import Model
from crs_jax.runtime import arguments, memory
from crs_jax.runtime.errors import InputError
from crs_jax.signals.registry import rewards
from crs_jax.tools.api.loading import MODELS, NO_ID, Loaded, load_run
from crs_jax.tools.api.proposals import Recommendation, Reply, Score, recommendations
from crs_jax.tools.export import shared_model
from crs_jax.tools.export.card import model_card
from crs_jax.tools.export.folder import read, write

T = TypeVar("T")


def public(thing: T) -> T:
    """A function, or a class with its methods, whose errors name arguments."""
    if inspect.isclass(thing):
        for name, method in list(vars(thing).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                setattr(thing, name, public(method))
        return thing

    @functools.wraps(thing)  # type: ignore[arg-type]
    def call(*args: Any, **settings: Any) -> Any:
        try:
            return thing(*args, **settings)  # type: ignore[operator]
        except InputError as error:
            raise InputError(arguments.in_python(str(error))) from None

    return call  # type: ignore[return-value]


@public
class Run:
    """A finished run, with one of its policies at work; from an exported folder it has that alone, no reward model.

    Attributes:
      model: ppo or sft.
      workdir: the run's folder.
      config: its settings.
    """

    def __init__(self, loaded: Loaded, model: str) -> None:
        self._loaded, self.model = loaded, model
        self.workdir, self.config = loaded.workdir, loaded.task.config
        self._known: tuple[tuple[Turn, ...], Contexts] | None = None

    def __repr__(self) -> str:
        what = f"model={self.model!r}, dataset={self.config.data.dataset!r}, items={len(self.catalogue)}"
        return f"Run({str(self.workdir)!r}, {what})"

    @property
    def catalogue(self) -> Catalogue:
        """What it can propose.

        >>> len(crs_jax.load(workdir).catalogue) > 0
        True
        """
        return self._loaded.task.corpus.catalogue

    @property
    def models(self) -> tuple[str, ...]:
        """The policies that the run has.

        >>> crs_jax.load(workdir).models
        ('ppo', 'sft')
        """
        return tuple(name for name in MODELS if name in self._loaded.models)

    @property
    def can_score(self) -> bool:
        """Whether it has a reward model, as `score` needs.

        >>> crs_jax.load(workdir).can_score
        True
        """
        return self._loaded.aligned is not None

    def using(self, model: str) -> Run:
        """The same run with another of its policies; nothing is loaded a second time.

        >>> run = crs_jax.load(workdir)
        >>> run.using("sft").model
        'sft'

        Raises:
          InputError: the run has no such policy.
        """
        if model not in MODELS:
            raise InputError(f"model={model!r}: take {' or '.join(MODELS)}")
        if model not in self._loaded.models and self._loaded.shared:
            raise InputError(f"{self.workdir}: of the run's policies it holds {self.models[0]} alone")
        if model not in self._loaded.models:
            raise InputError(
                f"--workdir={self.workdir}: it holds no finished stages reward and ppo, so no model {model!r}; take "
                "model='sft', or run these stages"
            )
        return Run(self._loaded, model)

    def recommend(self, dialogue: Sequence[Message], top: int = 5, fresh: bool = True) -> list[Recommendation]:
        """The likeliest items to propose next, best first.

        >>> run = crs_jax.load(workdir)
        >>> items = run.recommend([("seeker", "Hi! Something light and funny, please.")], top=3)
        >>> len(items), items[0].probability >= items[1].probability
        (3, True)

        Args:
          dialogue: what was said so far.
          top: how many.
          fresh: leave out what was named in the dialogue.

        Raises:
          InputError: the dialogue is empty or has another shape, or `top` is below 1.
        """
        top, fresh = arguments.whole("top", top, 1), arguments.boolean("fresh", fresh)
        turns = self._turns(dialogue)
        scores_N = self._scores(turns)
        named = {item for turn in turns for item in turn.items} if fresh else set[str]()
        catalogue = self.catalogue
        order = [row for row in np.argsort(-scores_N, kind="stable") if catalogue.items[row].item_id not in named]
        return recommendations(catalogue, order[:top], scores_N)

    def reply(
        self, dialogue: Sequence[Message], temperature: float = 1.0, seed: int = 0, top: int = 5, fresh: bool = True
    ) -> Reply:
        """What the recommender says next.

        >>> run = crs_jax.load(workdir)
        >>> talk = [{"role": "user", "content": "Hi! Something light and funny, please."}]
        >>> reply = run.reply(talk, temperature=0.7, seed=1)
        >>> len(reply.top), reply == run.reply(talk, temperature=0.7, seed=1)
        (5, True)
        >>> talk += [reply.turn, ("seeker", "I have seen that one.")]

        Args:
          dialogue: what was said so far.
          temperature: divides the logits; 0 takes the likeliest at each step.
          seed: of the sampling; the same seed gives the same reply.
          top, fresh: of `Reply.top`, as for `recommend`.

        Raises:
          InputError: as `recommend`; or the temperature is below 0, or the seed no number of 32 bits.
        """
        temperature = arguments.temperature("temperature", temperature)
        seed = arguments.whole("seed", seed, 0, arguments.MOST_SEED)
        top, fresh = arguments.whole("top", top, 1), arguments.boolean("fresh", fresh)
        turns, task, catalogue = self._turns(dialogue), self._loaded.task, self.catalogue
        with self._loaded.precision():
            tokens_BR, mask_BR = generate(task, self._policy, self._contexts(turns), temperature, seed, "")
        tokens = tuple(tokens_BR[0][mask_BR[0]].tolist())
        turn = task.tokenizer.decode_turn([task.tokenizer.recommender, task.tokenizer.rec, *tokens], catalogue)
        proposed = task.tokenizer.decode_reply(tokens, catalogue)[0]
        items = tuple(recommendations(catalogue, proposed, self._scores(turns)))
        last = turns[-1]
        unlinked = self._loaded.unlinked.find(last.render(catalogue.names)) if last.role == SEEKER else ()
        top_items = tuple(self.recommend(turns, top, fresh))
        return Reply(turn.render(catalogue.names), items, top_items, turn, tokens, unlinked)

    def score(self, dialogue: Sequence[Message], reply: str | Turn | Reply) -> Score:
        """What the run's reward model foretells of a reply, anybody's, to a dialogue.

        >>> run = crs_jax.load(workdir)
        >>> score = run.score([("seeker", "Something light and funny?")], "What do you like best?")
        >>> score.signals["relevance"] is None, -5 <= score.reward <= 5
        (True, True)

        Raises:
          InputError: the run has no reward model, or none that PPO has put to scale; or as `recommend`.
        """
        aligned = self._loaded.aligned
        if self._loaded.shared:
            raise InputError(f"{self.workdir}: it holds no reward model, which scores replies; the run does")
        if aligned is None:
            raise InputError(f"--workdir={self.workdir}: it has no finished stages reward and ppo, which score replies")
        turns, task = self._turns(dialogue), self._loaded.task
        if not isinstance(reply, (Reply, Turn)):
            reply = read_message(RECOMMENDER, reply, self._loaded.titles, words_are="reply is") or ""
        tokens_BR, mask_BR = self._loaded.reply_arrays(turns, reply.tokens if isinstance(reply, Reply) else reply)
        with self._loaded.precision():
            judged = judge_replies(task, aligned, self._policy, self._contexts(turns), tokens_BR, mask_BR, "")
        found = [float(value) if np.isfinite(value) else None for value in judged.signal_BS[0]]
        return Score(dict(zip(rewards(), found, strict=False)), float(judged.reward_B[0]))

    def message(self, role: str, text: str) -> Turn:
        """A message as a record: its words, and the items whose titles stand in them.

        >>> run = crs_jax.load(workdir)
        >>> run.message("user", "Hello!").items
        ()

        Raises:
          InputError: it has no words, or the role is none.
        """
        turn = read_message(role, text, self._loaded.titles)
        if turn is None:
            raise InputError(f"role={role!r}, text={text!r:.80}: take words of the seeker or the recommender")
        return turn

    def warm_up(self) -> None:
        """Compiles all that the other methods run, so that none of their calls waits for it.

        >>> crs_jax.load(workdir).warm_up()
        """
        dialogue = [(SEEKER, "Hello!")]
        for temperature in (0.0, 1.0):
            reply = self.reply(dialogue, temperature)
        if self.can_score:
            self.score(dialogue, reply)

    def export(self, folder: str | pathlib.Path, licence: str = "", overwrite: bool = False) -> None:
        """Writes the policy in use as a Hugging Face folder, with its items and model card (`tools/export/folder.py`).

        `load` gives it back, equal in every bit, without the run and its corpus.

        >>> run = crs_jax.load(workdir)
        >>> run.export(workdir / "shared")
        >>> crs_jax.load(workdir / "shared").recommend([("user", "Hi!")]) == run.recommend([("user", "Hi!")])
        True

        Args:
          folder: where; it appears when it is whole.
          licence: of weights and item table, as the hub names it; by default that of the corpus.
          overwrite: replaces a folder that was exported before.

        Raises:
          InputError: the place is taken, or the run is an exported folder itself.
        """
        if self._loaded.shared:
            raise InputError(f"{self.workdir}: is an exported folder already; copy it, or name the run it came from")
        folder, licence = arguments.path("folder", folder), arguments.text("licence", licence)
        overwrite = arguments.boolean("overwrite", overwrite)
        write(self._loaded, self.model, folder, model_card(self.workdir, self.model, licence), overwrite)

    @property
    def _policy(self) -> Model:
        return self._loaded.models[self.model]

    def _turns(self, dialogue: Sequence[Message]) -> tuple[Turn, ...]:
        return read_dialogue(dialogue, self._loaded.titles)

    def _contexts(self, turns: tuple[Turn, ...]) -> Contexts:
        """The context at the end of the turns, one row."""
        known = self._known
        if known is None or known[0] != turns:
            about = self._loaded.about(Dialogue(NO_ID, turns))
            self._known = known = turns, contexts_at(about, "test", [(0, len(turns))])
        return known[1]

    def _scores(self, turns: tuple[Turn, ...]) -> np.ndarray:
        with self._loaded.precision():
            return ranking_scores(self._loaded.task, self._policy, self._contexts(turns), "")[0]


@public
def load(
    workdir: str | pathlib.Path, model: str = "", data_dir: str | pathlib.Path = "", trust_code: bool = False
) -> Run:
    """A finished run from its folder, or one policy from a folder that `crs_jax.tools.export.program` wrote.

    What a run left is not changed, and it may go on. What its caches lack is made again in its folder; elsewhere only
    compiled programs are kept, in the user's own cache.

    >>> import crs_jax
    >>> crs_jax.load(workdir, model="sft").model
    'sft'

    Args:
      workdir: the run's folder, or the exported one.
      model: ppo, or sft, the policy before it; by default ppo, and of an exported folder the one it holds.
      data_dir: where the corpus' files are, if not where they were.
      trust_code: runs the reward of one's own that the run's config names. An exported folder runs none.

    Raises:
      InputError: the folder is no finished run or lacks the model, or its code is not trusted; says what is missing.
    """
    folder, trusted = arguments.path("workdir", workdir), arguments.boolean("trust_code", trust_code)
    if model not in ("", *MODELS):
        raise InputError(f"model={model!r:.80}: take {' or '.join(MODELS)}")
    data_dir = str(arguments.path("data_dir", data_dir)) if data_dir != "" else ""
    with memory.loading(folder):
        if own := shared_model(folder):
            return Run(read(folder), own).using(model or own)
        return Run(load_run(folder, data_dir, trusted), "sft").using(model or "ppo")
