"""What is saved comes back bit for bit; what was made under another config or from other inputs is refused by name."""

import json
import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from waits import HANGS

from configs.common import get_config
from crs_jax.runtime.checkpoint import FREE, SECTIONS, Checkpoints, Saved, digest, done_meta, identity
from crs_jax.runtime.errors import InputError


def tree(seed: int = 0) -> dict:
    """The types a training state holds: float32 with what is hard to keep, bfloat16, integers, a flag, a key's data."""
    keys = jax.random.split(jax.random.key(seed), 3)
    kernel = jax.random.normal(keys[0], (5, 7)).at[0, :4].set(jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45]))
    return {
        "params": {"kernel": kernel, "half": jax.random.normal(keys[1], (3,), jnp.bfloat16)},
        "count": jnp.int32(7),
        "halted": jnp.asarray(False),
        "key": jax.random.key_data(keys[2]),
    }


def one(step: int, **changes) -> Saved:
    return Saved(**{"step": step, "done": False, "state": tree(step), "result": {"w": jnp.full(2, step)}, **changes})


def saved(workdir, config=None, inputs=None, steps=(3,), **changes) -> None:
    with Checkpoints(workdir, "reward", config or get_config(), inputs or {}) as checkpoints:
        for step in steps:
            checkpoints.save(one(step, **changes))


def test_state_and_result_come_back_bit_for_bit(tmp_path):
    facts = {"best_loss": (0.25, np.inf), "floor": 0.1, "seconds": 1.5}
    saved(tmp_path, **facts)
    with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
        assert checkpoints.latest() == Saved(step=3, done=False, **facts)
        found = checkpoints.restore(3, "state", jax.tree.map(jnp.zeros_like, tree()))
        result = checkpoints.restore(3, "result", {"w": jnp.zeros(2, jnp.int32)})
    expected = tree(3)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert result["w"].tolist() == [3, 3]


def test_a_save_ends_even_when_the_next_step_fails(tmp_path):
    def fails():
        with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
            checkpoints.save(one(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
        assert checkpoints.latest().step == 1


def test_the_newest_two_are_kept_and_a_torn_one_is_not_seen(tmp_path):
    saved(tmp_path, steps=(1, 2, 3))
    folder = tmp_path / "checkpoints" / "reward"
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    (folder / "4.orbax-checkpoint-tmp-7").mkdir()
    with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
        assert checkpoints.latest().step == 3


def test_no_damage_is_taken_for_a_checkpoint(tmp_path):
    """A bit is turned or an end cut off in any of its files: it comes back as it was saved, or one error says where."""
    saved(tmp_path / "run")
    rng, told = random.Random(0), 0
    for number in range(40):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", workdir)
        folder = workdir / "checkpoints" / "reward" / "3"
        file = rng.choice([path for path in folder.rglob("*") if path.is_file() and path.stat().st_size])
        data = bytearray(file.read_bytes())
        place = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[place] ^= 1 << rng.randrange(8)
        else:
            del data[place:]
        file.write_bytes(data)
        try:
            with Checkpoints(workdir, "reward", get_config()) as checkpoints:
                assert checkpoints.latest() == Saved(step=3, done=False)
                found = [checkpoints.restore(3, "state", jax.tree.map(jnp.zeros_like, tree()))]
                found.append(checkpoints.restore(3, "result", {"w": jnp.zeros(2, jnp.int32)}))
        except InputError as error:
            where = str(error)
            told += 1
        else:
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves([tree(3), {"w": jnp.full(2, 3)}]), strict=True)
            assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs), file
            where = str(folder)
        assert where.startswith(str(folder)), where
    assert 5 < told < 40


@pytest.mark.parametrize("name", ["40", "4"])
def test_one_under_another_step_s_name_is_refused(tmp_path, name):
    """It would be gone on from as if it were that step."""
    saved(tmp_path, steps=(20,))
    folder = (tmp_path / "checkpoints" / "reward" / "20").rename(tmp_path / "checkpoints" / "reward" / name)
    with pytest.raises(InputError, match=f"{folder}: holds step 20; give the folder its own name again"):
        Checkpoints(tmp_path, "reward", get_config())
    folder.rename(folder.with_name("20"))
    with Checkpoints(tmp_path, "reward", get_config()) as checkpoints:
        assert checkpoints.latest().step == 20


DAMAGED = """
import pathlib, sys
from crs_jax.runtime.checkpoint import load_result
from crs_jax.runtime.errors import InputError
workdir = pathlib.Path(sys.argv[1])
folder = workdir / "checkpoints" / "reward" / "3"
for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    data = path.read_bytes()
    half = len(data) // 2
    turned = data[:half] + bytes(byte ^ 4 for byte in data[half : half + 1]) + data[half + 1 :]
    for damaged in (None, b"", data[:half], turned):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        try:
            load_result(workdir, "reward")
            print("loads")
        except InputError as error:
            print(error)
        path.write_bytes(data)
"""


def test_all_that_is_said_of_a_damaged_one_is_one_line(tmp_path):
    """On the process' own streams, where libraries and their threads write. Files gone, empty, cut, or a bit turned."""
    saved(tmp_path, done=True)
    done = subprocess.run([sys.executable, "-c", DAMAGED, str(tmp_path)], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    folder = tmp_path / "checkpoints" / "reward" / "3"
    rule = "delete that folder to go on from the checkpoint before it, or where there is none to train again"
    assert set(lines) == {"loads", f"{folder}: damaged, it cannot be read as it was written; {rule}"}
    assert 20 < lines.count("loads") < len(lines) - 20  # sums are of the arrays: what else there is may be damaged


def test_a_program_says_of_a_damaged_one_one_line(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    for path in (workdir / "checkpoints" / "sft").glob("*/result/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = subprocess.run(
        [sys.executable, "-m", "crs_jax.chat", f"--workdir={workdir}"], input="", capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: \S+/checkpoints/sft/\d+: damaged, it cannot be read as it was .*\n", done.stderr)


@pytest.mark.parametrize("change", [{"digest": None}, {"layout": None}, {"layout": 1}])
def test_one_of_an_earlier_version_is_refused(tmp_path, change):
    saved(tmp_path)
    path = next((tmp_path / "checkpoints").rglob("meta/metadata"))
    meta = {name: value for name, value in {**json.loads(path.read_text()), **change}.items() if value is not None}
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="reward: made by an earlier version of crs_jax; use another --workdir"):
        Checkpoints(tmp_path, "reward", get_config())


def test_a_stage_is_done_when_its_last_checkpoint_says_so(tmp_path):
    assert done_meta(tmp_path, "reward") == {}
    saved(tmp_path)
    assert done_meta(tmp_path, "reward") == {}
    saved(tmp_path, steps=(4,), done=True)
    assert done_meta(tmp_path, "reward")["done"] is True


def changed(name: str):
    """The default config with one setting another value of its type."""
    config = get_config()
    section, *path = name.split(".")
    node, field = config, section
    for key in path:
        node, field = node[field], key
    value = node[field]
    node[field] = not value if isinstance(value, bool) else value + (1 if isinstance(value, int | float) else "x")
    return config


@pytest.mark.parametrize(
    "name", ["seed", "data.window", "model.width", "sft.learning_rate", "signals.engagement.dwell"]
)
def test_another_config_is_refused_by_name(tmp_path, name):
    saved(tmp_path)
    with pytest.raises(InputError, match=rf"reward: made with config\.{name}=\S+, now \S+; use another --workdir"):
        Checkpoints(tmp_path, "reward", changed(name))


def test_micro_batches_may_change_also_of_one_made_when_they_counted(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setitem(FREE, "reward", ())
        saved(tmp_path)
    with Checkpoints(tmp_path, "reward", changed("reward.accumulate")) as checkpoints:
        assert checkpoints.latest().step == 3


def test_other_inputs_are_refused_by_name(tmp_path):
    saved(tmp_path, inputs={"data": "a", "SFT model": "b"})
    Checkpoints(tmp_path, "reward", get_config(), {"data": "a", "SFT model": "b"}).close()
    with pytest.raises(InputError, match="made from another SFT model than this run's"):
        Checkpoints(tmp_path, "reward", get_config(), {"data": "a", "SFT model": "c"})


def test_what_decides_a_result_and_what_does_not():
    every = list(SECTIONS["sft"] + SECTIONS["reward"] + SECTIONS["seeker"] + SECTIONS["ppo"])
    config = get_config()
    assert set(config.keys()) - set(every) == {"stages", "log_every", "save_minutes", "evaluation", "wandb", "plugins"}
    assert "reward.alpha" not in identity(config, "reward")
    assert "reward.alpha" in identity(config, "ppo")
    assert "reward.spread" not in identity(config, "reward")
    assert {"reward.spread", "reward.ensemble"} <= identity(config, "ppo").keys()
    assert "reward.ensemble" in identity(config, "reward")
    assert "reward.ensemble" not in identity(config, "sft")
    assert "model.value" not in identity(config, "sft")
    assert "model.value" in identity(config, "ppo")
    assert "ppo.clip" not in identity(config, "reward")
    for stage in ("sft", "reward", "ppo"):
        assert identity(config, stage) == identity(changed("data.cache_dir"), stage)
        assert "evaluation.ks" not in identity(config, stage)
    known = identity(config, "ppo").keys() | {name for names in FREE.values() for name in names}
    assert {"sft.epochs", "signals.engagement.dwell", "mesh.tensor", "mesh.fsdp"} <= known


def test_digest_tells_trees_apart():
    base = {"a": jnp.linspace(-1, 1, 1000), "b": jnp.ones(3, jnp.bfloat16)}
    assert digest(base) == digest(jax.tree.map(jnp.copy, base))
    assert digest(base) != digest({**base, "a": base["a"].at[7].add(1e-6)})
    assert digest(base) != digest({**base, "b": -base["b"]})
    assert digest(base) != digest({**base, "a": jnp.full(1000, jnp.nan)})
