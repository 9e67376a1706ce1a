"""A finished run, read from its workdir to be used: the models, and a task without dialogues. Nothing is trained.

No lock is taken and nothing that a run left is changed; prepared data that the caches lack is made again there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from ml_collections import ConfigDict

from crs_jax.data.corpora import is_simulated
from crs_jax.data.corpus import Corpus, load
from crs_jax.data.dialogue import RECOMMENDER, Dialogue, Turn
from crs_jax.data.simulated import holds
from crs_jax.data.titles import Titles
from crs_jax.data.tokenizer import DialogueTokenizer
from crs_jax.data.unlinked import UnlinkedTitles
from crs_jax.features.attributes import Attributes
from crs_jax.features.cooccurrence import CoOccurrence
from crs_jax.features.people import People
from crs_jax.inputs.replies import reply_arrays
from crs_jax.inputs.task import Task, new_policy, split_model
from crs_jax.models.encoder import embed, embed_on_host
from crs_jax.prepare import made_from
from crs_jax.rl.reward import Normaliser, RewardModel
from crs_jax.runtime.checkpoint import done_meta, load_result
from crs_jax.runtime.compilation import keep_programs
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.sharding import AXES, place
from crs_jax.runtime.storage import is_file, is_folder, leads_out
from crs_jax.stored_config import read_config
from crs_jax.training.ppo_stage import Aligned, Model, build

MODELS = ("ppo", "sft")
NO_ID = ""  # no corpus has it, so that no training dialogue is taken for the one at hand


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a finished run holds.

    Attributes:
      workdir: its folder.
      task: its data; `about` puts a dialogue before it.
      models: `sft` and, where the run has it, `ppo`.
      aligned: what scores replies, with `ppo`; None without.
      titles: of its catalogue, for typed text.
      shared: a folder of `crs_jax.tools.export.program` with one policy alone, not the run itself.
    """

    workdir: pathlib.Path
    task: Task
    models: dict[str, Model]
    aligned: Aligned | None
    titles: Titles
    shared: bool = False

    @functools.cached_property
    def unlinked(self) -> UnlinkedTitles:
        """Tells which titles of a typed text are linked to no item."""
        return UnlinkedTitles(self.titles)

    def about(self, dialogue: Dialogue) -> Task:
        """The task with that dialogue as its test split."""
        config, catalogue = self.task.config, self.task.corpus.catalogue
        encoded = self.task.tokenizer.encode_dialogues([dialogue], catalogue, config.data.act_items)
        corpus = dataclasses.replace(self.task.corpus, test=(dialogue,))
        return dataclasses.replace(self.task, corpus=corpus, encoded={**self.task.encoded, "test": encoded})

    def reply_arrays(self, turns: tuple[Turn, ...], reply: Any) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[1, R]` after `<|rec|>` and their mask of a reply to the turns: a recommender's turn, or its tokens.

        Raises:
          InputError: it is neither.
        """
        R, tokenizer = self.task.config.data.reply_tokens, self.task.tokenizer
        if isinstance(reply, tuple):
            if len(reply) > R or max(reply, default=0) >= tokenizer.vocab_size:
                raise InputError("reply: its tokens are another run's; give its text")
            tokens_BR, mask_BR = np.full((1, R), tokenizer.pad, np.int32), np.zeros((1, R), bool)
            tokens_BR[0, : len(reply)], mask_BR[0, : len(reply)] = reply, True
            return tokens_BR, mask_BR
        if not isinstance(reply, Turn) or reply.role != RECOMMENDER:
            raise InputError(f"reply={reply!r:.80}: take what the recommender says, with words")
        return reply_arrays(self.about(Dialogue(NO_ID, (*turns, reply))), "test", [(0, len(turns))])

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """That of the run's matrix products; programs are to be called within it."""
        return jax.default_matmul_precision(self.task.config.model.matmul)


def load_run(workdir: pathlib.Path, data_dir: str = "", trust_code: bool = False) -> Loaded:
    """Reads a finished run. Nothing is written but in its folder, whatever its config names.

    Args:
      workdir: its folder.
      data_dir: where the corpus' files are now; empty: where they were.
      trust_code: whether Python code that its config names, plugins and a reward of one's own, may be run.

    Raises:
      InputError: the folder is no finished run, naming what is missing; its corpus cannot be read; or its config names
        code that is not trusted.
    """
    workdir = pathlib.Path(workdir).expanduser()
    config = _config(workdir, trust_code)
    if data_dir:
        if not is_folder(data_dir):
            raise InputError(f"--data_dir={data_dir}: there is no such folder")
        config.data.dir = str(data_dir)
        if not is_file(config.data.get("metadata", "")):  # moved with the rest
            config.data.metadata = ""
        if is_simulated(config.data.dataset) and not holds(pathlib.Path(data_dir), config.simulator, config.seed):
            rule = "leave it out to have that corpus made again"
            raise InputError(f"--data_dir={data_dir}: does not hold the simulated corpus of this run; {rule}")
    results = {stage: load_result(workdir, stage) for stage in ("sft", "reward", "ppo")}
    if results["sft"] is None:
        raise InputError(
            f"--workdir={workdir}: {workdir / 'checkpoints'} holds no finished stage sft; give the workdir of a run "
            "that has ended with it"
        )
    if config.reward.function and not trust_code and results["reward"] is not None and results["ppo"] is not None:
        raise InputError(
            f"--workdir={workdir}: its config.json names Python code, reward.function={config.reward.function:.200}, "
            "which scoring replies would run; read it, and give --trust-code if you trust it"
        )
    keep_programs()
    task = _task(config, workdir)
    with jax.default_matmul_precision(config.model.matmul):
        return Loaded(workdir, task, *_models(task, results), Titles(task.corpus.catalogue, task.corpus.train))


def _config(workdir: pathlib.Path, trusted: bool) -> ConfigDict:
    for name in ("config.json", "tokenizer/dialogue_tokenizer.json"):
        if not (workdir / name).is_file():
            what = "" if workdir.is_dir() else "there is no such folder; "
            raise InputError(f"--workdir={workdir}: {what}there is no {name}; give the workdir of a run that has ended")
    config = read_config(workdir, trusted)
    if config.model.transfer:
        raise InputError(
            f"--workdir={workdir}: this run measured the models of {config.model.transfer} and holds none of its own; "
            "give that folder"
        )
    return adapted(config)


def adapted(config: ConfigDict) -> ConfigDict:
    """A run's settings, changed in place to what serves one dialogue at a time on this machine."""
    if config.model.attention == "cudnn" and jax.default_backend() != "gpu":
        config.model.attention = "xla"  # the same numbers, to rounding
    config.evaluation.batch = 1  # the functions of evaluation/policies.py take one context at a time here
    return config


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device alone."""
    return jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])


def _task(config: ConfigDict, workdir: pathlib.Path) -> Task:
    corpus: Corpus = load(config, workdir, stored=True)
    tokenizer = DialogueTokenizer.load(workdir / "tokenizer")
    if tokenizer.num_items != len(corpus.catalogue):
        raise InputError(
            f"--workdir={workdir}: the run was made with {tokenizer.num_items} items, its corpus now has "
            f"{len(corpus.catalogue)}; give the files it was made with (--data_dir)"
        )
    now, then = made_from(config, corpus, tokenizer, ()), done_meta(workdir, "sft")["inputs"]
    for name in ("catalogue", "vocabulary", "sentence encoder"):
        if name in then and now[name] != then[name]:
            raise InputError(
                f"--workdir={workdir}: the run was made with another {name}; give the files it was made with"
            )
    cache = workdir / "cache"
    known = [pathlib.Path(config.data.cache_dir).expanduser()] if config.data.cache_dir else []
    outside = leads_out(cache / "embeddings", workdir)  # is read, and not written
    with_reply = (n for n, d in enumerate(corpus.train) if any(turn.role == RECOMMENDER for turn in d.turns[1:]))
    first = corpus.train[: next(with_reply, 0) + 1]  # a reward of one's own is tried on its reply
    on_host = functools.partial(embed_on_host, config=config.encoder)  # compiles nothing, whatever a text's length
    return Task(
        config=config,
        workdir=workdir,
        mesh=one_device(),
        corpus=corpus,
        tokenizer=tokenizer,
        encoded={"train": tokenizer.encode_dialogues(first, corpus.catalogue, config.data.act_items)},
        content_NE=embed(
            [item.describe() for item in corpus.catalogue.items],
            config.encoder,
            None if outside else cache,
            also=[*known, cache] if outside else known,
        ),
        attributes=Attributes.of(corpus.catalogue),
        cooccurrence=CoOccurrence(corpus.train, corpus.catalogue),
        people=People(corpus.catalogue),
        embed=on_host,
        embed_on_host=on_host,
        cache=cache,
        made_from=now,
    )


def _models(task: Task, results: dict[str, Any]) -> tuple[dict[str, Model], Aligned | None]:
    """The policies, and what scores replies."""
    scratch = task.config.copy_and_resolve_references()
    scratch.model.init = "scratch"  # sizes alone are wanted; a checkpoint's weights would be overwritten
    graphdef, _, frozen = split_model(new_policy(dataclasses.replace(task, config=scratch)))
    frozen = place(frozen, task.mesh)
    sft = (graphdef, place(results["sft"], task.mesh), frozen)
    if results["reward"] is None or results["ppo"] is None:
        return {"sft": sft}, None
    reward_graph, _, reward_frozen = split_model(RewardModel(nnx.merge(*sft)))
    reward = (reward_graph, place(results["reward"], task.mesh), reward_frozen)
    graphs, _, frozen_models = build(task, sft, reward)
    normaliser = Normaliser(**{name: jnp.asarray(value) for name, value in results["ppo"]["normaliser"].items()})
    ppo = (graphs.aligned, place(results["ppo"]["policy"], task.mesh), frozen)
    return {"sft": sft, "ppo": ppo}, Aligned(ppo, graphs, frozen_models, normaliser)
