"""What a machine lacks is one line at the start, which names a setting; what it has is not asked for."""

import json
import pathlib
import shutil
import socket
import sys
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hub_server import Handler, Repository, serving

from configs import quickstart, redial_ppo
from configs.variants import ROBERTA
from crs_jax import pipeline, preflight
from crs_jax.data import byte_bpe, records
from crs_jax.inputs.task import count, model_config
from crs_jax.models import encoder, weights
from crs_jax.models.policy import Policy
from crs_jax.runtime.errors import InputError
from crs_jax.tools.benchmark import ahead

STAGES = ("sft", "reward", "ppo", "evaluate")
COMMIT = "0" * 39 + "1"
WANTED = {  # setting: repository, revision
    "data.hub=community-datasets/re_dial": ("community-datasets/re_dial", "main"),
    "tokenizer.path is empty": (byte_bpe.GPT2_HUB, byte_bpe.GPT2_REVISION),
    "encoder.path is empty": (encoder.HUB, encoder.REVISION),
    "model.init=openai-community/gpt2-medium": weights.revisions()["gpt2-medium"],
    f"signals.sentiment={ROBERTA}": tuple(ROBERTA.split("@")),
}


@pytest.fixture
def dead():
    """A port that nobody listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Sets the hub's address, an empty cache, and no encoder but the hub's."""
    import datasets
    from huggingface_hub import constants

    def at(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(encoder, "PACKAGE", "no_package_of_this_name")
    return at


def plain(only: str = "", folder: str = ""):
    """The plain config; of what it fetches all but one thing is in a folder, where one is named."""
    config = redial_ppo.get_config()
    if only:
        local = {"data.dir": folder, "tokenizer.path": folder, "encoder.path": folder, "model.init": folder,
                 "signals.sentiment": "vader"}  # fmt: skip
        names = {"data.hub": "data.dir", "model.init": "model.init", "signals.sentiment": "signals.sentiment"}
        setting = only.partition("=")[0].partition(" ")[0]
        local.pop(names.get(setting, setting))
        for name, value in local.items():
            section, field = name.split(".")
            config[section][field] = value
    return config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "local").mkdir()
    for name in encoder.FILES:
        (tmp_path / "local" / name).touch()
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 9}
    (tmp_path / "local" / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    return str(tmp_path / "local")


def test_the_plain_config_asks_the_hub_for_five_things(online, tmp_path):
    found = preflight.fetches(plain(), tmp_path, classifier=True, first=True)
    assert {fetch.setting: (fetch.repository, fetch.revision) for fetch in found} == WANTED
    assert [fetch.kind for fetch in found] == ["dataset", "model", "model", "model", "model"]
    without = preflight.fetches(plain(), tmp_path, classifier=False, first=False)
    assert [fetch.setting for fetch in without] == list(WANTED)[1:4]
    assert preflight.fetches(quickstart.get_config(), tmp_path, False, True)[0].setting == "encoder.path is empty"


@pytest.mark.parametrize("setting", WANTED)
def test_a_hub_that_does_not_answer(online, dead, tmp_path, folder, setting):
    online(dead)
    start = time.monotonic()
    with pytest.raises(InputError) as met:
        preflight.check(plain(setting, folder), tmp_path, STAGES)
    assert time.monotonic() - start < 5
    said = str(met.value)
    assert said.startswith(f"--config.{setting}: the hub at {dead} does not answer for ")
    assert WANTED[setting][0] in said
    assert "\n" not in said


@pytest.mark.parametrize("setting", WANTED)
@pytest.mark.parametrize("gone", ["repository", "revision"])
def test_what_the_hub_has_not(online, tmp_path, folder, setting, gone):
    name, revision = WANTED[setting]
    config = plain(setting, folder)
    kind = "dataset" if setting.startswith("data.") else "model"
    repositories = {} if gone == "repository" else {name: Repository(tmp_path / "local", COMMIT, kind)}
    if gone == "revision" and kind == "dataset":
        revision = config.data.revision = "v2"
    with serving(repositories) as hub:
        online(hub.url)
        with pytest.raises(InputError, match=r"status 404\): ") as met:
            preflight.check(config, tmp_path, STAGES)
    assert str(met.value).startswith(f"--config.{setting}: the hub at {hub.url} has no {kind} {name} at {revision}")


def test_a_hub_in_trouble(online, tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Handler, "answer", lambda self: self.send(503, b""))
    with serving({}) as hub:
        online(hub.url)
        with pytest.raises(InputError, match=r"--config\.model\.init=.* is in trouble \(status 503\): give a folder"):
            preflight.check(plain("model.init", folder), tmp_path, STAGES)


def test_a_hub_that_has_all_is_asked_once_for_each_and_for_no_file(online, tmp_path):
    kinds = {name: "dataset" if "re_dial" in name else "model" for name, _ in WANTED.values()}
    (tmp_path / "repository").mkdir()
    held = {name: Repository(tmp_path / "repository", revision if revision != "main" else COMMIT, kinds[name])
            for name, revision in WANTED.values()}  # fmt: skip
    with serving(held) as hub:
        online(hub.url)
        preflight.check(plain(), tmp_path, STAGES)
    asked = [path for method, path in hub.requests if method == "GET" and "/api/agent" not in path]
    assert asked == [f"/api/{kinds[name]}s/{name}/revision/{revision}" for name, revision in WANTED.values()]


def test_offline_says_so(online, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"--config\.data\.hub=.*HF_HUB_OFFLINE"):
        preflight.check(plain(), tmp_path, STAGES)


def test_missing_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused = r"--config\.signals\.sentiment=cardiffnlp/.* needs torch.*extra 'roberta'.*sentiment=vader"
    with pytest.raises(InputError, match=refused):
        preflight.check(plain(), tmp_path, STAGES)
    assert preflight.needs_classifier(plain(), tmp_path, STAGES)
    assert not preflight.needs_classifier(plain(), tmp_path, ("sft", "evaluate"))
    assert not preflight.needs_classifier(quickstart.get_config(), tmp_path, STAGES)


def test_a_run_that_has_its_labels_needs_no_classifier(finished_run, tmp_path):
    config = redial_ppo.get_config()
    assert not preflight.needs_classifier(config, finished_run, STAGES)
    shutil.copy(finished_run / "metrics.json", tmp_path / "metrics.json")  # without the reward model itself
    assert preflight.needs_classifier(config, tmp_path, STAGES)


def free(monkeypatch, amount: float) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=amount))


def test_too_little_disk(tmp_path, monkeypatch):
    """GPT-2 medium: 1.5 GB of parameters, 5 times in a checkpoint of SFT and 4 times in the others; two are kept."""
    config, once = redial_ppo.get_config(), 4 * preflight.parameters(redial_ppo.get_config())
    for stages, copies in ((("sft",), 15), (("sft", "reward", "ppo"), 31), (("ppo", "evaluate"), 12)):
        free(monkeypatch, copies * once - 1)
        with pytest.raises(InputError) as met:
            preflight.refuse_small_disk(config, tmp_path, stages)
        said = f"--workdir={tmp_path}: the checkpoints of this run take about {copies * once / 1e9:.2f} GB"
        assert str(met.value).startswith(said)
        free(monkeypatch, copies * once)
        preflight.refuse_small_disk(config, tmp_path, stages)
    free(monkeypatch, 0)
    preflight.refuse_small_disk(config, tmp_path, ("evaluate",))
    for stage in ("sft", "reward", "ppo"):  # a run that goes on says what a full disk does where it meets it
        (tmp_path / "checkpoints" / stage).mkdir(parents=True)
    preflight.refuse_small_disk(config, tmp_path, STAGES)


def test_room_for_what_is_fetched(online, tmp_path, monkeypatch):
    """Of GPT-2 config and weights, of the classifier the pickle where there is nothing else; nothing else counts."""
    folder, config = tmp_path / "repository", plain()
    folder.mkdir()
    sizes = {"config.json": 10, "vocab.json": 200, "merges.txt": 3000, "tokenizer.json": 40_000, "special.txt": 0,
             "model.safetensors": 500_000, "pytorch_model.bin": 6_000_000, "weights.msgpack": 70_000_000}  # fmt: skip
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    kinds = {name: "dataset" if "re_dial" in name else "model" for name, _ in WANTED.values()}
    held = {name: Repository(folder, revision if revision != "main" else COMMIT, kinds[name])
            for name, revision in WANTED.values()}  # fmt: skip
    words = sizes["config.json"] + sizes["vocab.json"] + sizes["tokenizer.json"]
    alone = {
        "data": sum(sizes.values()), "tokenizer": 3200, "encoder": sum(sizes.get(name, 0) for name in encoder.FILES),
        "model": 500_010, "signals": words + 3000 + 500_000,
    }  # fmt: skip
    checkpoints = preflight.room_for_checkpoints(config, tmp_path, STAGES)
    with serving(held) as hub:
        online(hub.url)
        found = {fetch.setting.partition(".")[0]: preflight.refuse_unless_there(fetch)
                 for fetch in preflight.fetches(config, tmp_path, True, True)}  # fmt: skip
        assert found == alone
        needed = sum(alone.values()) + checkpoints  # one disk holds both
        free(monkeypatch, needed - 1)
        with pytest.raises(InputError, match=r"HF_HOME: what this run fetches .* GB of checkpoints.* set HF_HOME to "):
            preflight.check(config, tmp_path, STAGES)
        free(monkeypatch, needed)
        preflight.check(config, tmp_path, STAGES)
        (folder / "model.safetensors").unlink()
        fetch = preflight.fetches(config, tmp_path, True, True)[-1]
        assert preflight.refuse_unless_there(fetch) == words + 3000 + 6_000_000
    free(monkeypatch, 0)
    preflight.refuse_small_cache(0, tmp_path, 1e12)  # nothing is fetched


def test_another_revision_or_an_interrupted_one_is_not_in_the_cache(online, tmp_path):
    from huggingface_hub import constants

    name, other = "owner/SomeData", "1" * 40
    refs = pathlib.Path(constants.HF_HUB_CACHE) / "datasets--owner--SomeData" / "refs"
    made = tmp_path / "datasets-cache" / "owner___some_data" / "default" / "0.0.0"
    refs.mkdir(parents=True)
    (made / f"{COMMIT}.incomplete").mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    assert not records.in_cache(name, "main")
    (made / COMMIT).mkdir()
    assert records.in_cache(name, "main")
    assert records.in_cache(name, COMMIT)
    assert not records.in_cache(name, other)
    assert not records.in_cache(name, "v2")
    (refs / "v2").write_text(other)
    assert not records.in_cache(name, "v2")
    (made / other).mkdir()
    assert records.in_cache(name, "v2")


@pytest.mark.parametrize(("revision", "offline", "refused"), [
    ("main", True, False), (COMMIT, True, False), ("1" * 40, True, True), ("v2", True, True),
    ("main", False, False), ("1" * 40, False, True), ("v2", False, False),
])  # fmt: skip
def test_another_revision_is_not_read_in_its_place(online, tmp_path, monkeypatch, revision, offline, refused):
    """Where the hub does not answer, `datasets` gives what it read last."""
    import datasets
    from huggingface_hub import constants

    folder = tmp_path / "datasets-cache" / "owner___name" / "default" / "0.0.0" / COMMIT
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(folder)
    found = datasets.DatasetDict({"train": datasets.load_from_disk(folder)})
    refs = pathlib.Path(constants.HF_HUB_CACHE) / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if refused:
        with pytest.raises(InputError, match=r"config\.data\.hub='owner/name': .* only another revision than"):
            records.read_hub("owner/name", revision, tmp_path)
    else:
        assert records.read_hub("owner/name", revision, tmp_path)["train"][0].value == {"a": 1}


def test_a_checkpoint_that_no_decoder_has_is_met_first(tmp_path):
    config = quickstart.get_config()
    config.model.init = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match=r"model_type is 'llama', which no decoder has; the decoders are gpt2$"):
        preflight.check(config, tmp_path, ("sft",))


def test_a_run_begins_with_the_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "prepare", lambda *_: pytest.fail("data were read first"))
    free(monkeypatch, 1000)
    with pytest.raises(InputError, match=rf"--workdir={tmp_path}: the checkpoints .* 0\.00 GB are free: make room"):
        pipeline.run(quickstart.get_config(), tmp_path, pytest.fail)


def test_checkpoints_are_as_large_as_estimated(finished_run):
    """The arrays in them, against the parameters that the run counted: what is estimated is their number of copies."""
    metrics = json.loads((finished_run / "metrics.json").read_text())
    config = quickstart.get_config()
    scale = metrics["run"]["parameters"] / preflight.parameters(config)
    for stage, size in preflight.checkpoint_bytes(config).items():
        kept = sorted((finished_run / "checkpoints" / stage).glob("[0-9]*"), key=lambda path: int(path.name))
        assert len(kept) == 2
        saved = [ocp.StandardCheckpointer().metadata(kept[-1] / kind) for kind in ("state", "result")]
        leaves = jax.tree.leaves([getattr(one, "item_metadata", one).tree for one in saved])
        found = sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
        assert abs(found / (scale * size) - 1) < 0.01, stage


def test_parameters_of_gpt2_medium():
    config = redial_ppo.get_config()
    layout = ahead.layout_of(config, ahead.REDIAL_ITEMS)
    content = np.zeros((ahead.REDIAL_ITEMS, ahead.EMBEDDING), np.float32)
    attributes = np.zeros((ahead.REDIAL_ITEMS, ahead.FACETS), np.float32)
    build = lambda: Policy(  # noqa: E731
        model_config(config), layout, content, None, attributes, ahead.GENRES, ahead.ASKED, rngs=nnx.Rngs(0)
    )
    exact = count(ahead.abstract(build)[1])
    assert abs(preflight.parameters(config) / exact - 1) < 0.02
