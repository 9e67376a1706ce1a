"""Talks with a finished run."""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Sequence

from crs_jax.runtime import arguments
from crs_jax.runtime.program import Parser
from crs_jax.tools.chat.guard import netloc
from crs_jax.tools.export import shared_model

FLAGS: tuple[tuple[str, type, object], ...] = (
    ("workdir", str, ""), ("model", str, ""), ("temperature", float, 0.7), ("top", int, 5), ("seed", int, 0),
    ("log", str, ""), ("data_dir", str, ""), ("host", str, "127.0.0.1"), ("port", int, 7860), ("auth", str, ""),
    ("url", str, ""),
)  # fmt: skip
"""Name, kind and default of the flags with a value."""


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; `InputError` for what cannot be used."""
    parser = Parser(prog="python -m crs_jax.chat", usage=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name, kind, default in FLAGS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=argparse.SUPPRESS)
    for name in ("web", "trust-code"):
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if not given.workdir:
        parser.error("--workdir is missing: name a run that has ended, such as --workdir=runs/quickstart")
    if given.model not in ("", "ppo", "sft", "both"):
        parser.error(f"--model={given.model}: take ppo, sft or both")
    arguments.temperature("--temperature", given.temperature)
    for name, *limits in (("top", 1), ("seed", 0, arguments.MOST_SEED), ("port", 0, 65535)):
        arguments.whole(f"--{name}", getattr(given, name), *limits)
    given.auth = given.auth or os.environ.get("CRS_JAX_AUTH", "")
    if given.auth and not all(given.auth.partition(":")):
        parser.error("--auth (or CRS_JAX_AUTH): take USER:PASSWORD")
    if given.url and not netloc(given.url):
        parser.error(f"--url={given.url}: take an address without a path, such as https://talk.example.org")
    if not given.model:
        own = shared_model(pathlib.Path(given.workdir).expanduser())
        given.model = own or ("both" if given.web and not given.log else "ppo")
    return given


def main(argv: Sequence[str]) -> None:
    """Loads the run, compiles, and talks."""
    given = options(argv)
    if given.web:
        from crs_jax.tools.chat.web import require_gradio

        require_gradio()
    from crs_jax.tools.api.run import load
    from crs_jax.tools.chat.conversation import Talker
    from crs_jax.tools.chat.feedback import FeedbackWriter

    started = time.monotonic()
    names = ("sft", "ppo") if given.model == "both" else (given.model,)
    run = load(given.workdir, names[-1], given.data_dir, given.trust_code)
    runs = {name: run.using(name) for name in names}
    log = FeedbackWriter(pathlib.Path(given.log), run.catalogue) if given.log else None
    talker = Talker(runs, given.top, given.seed, log)
    print(f"{run.config.data.dataset}, {len(run.catalogue):,} items, {' and '.join(names)}: compiling ...", flush=True)
    for each in runs.values():
        each.warm_up()
    print(f"ready in {time.monotonic() - started:.1f} s", flush=True)
    if log is not None:
        whose = " by those who agree" if given.web else ""
        print(f"what is said{whose} and when is written to {log.path}", flush=True)
    if given.web:
        from crs_jax.tools.chat.web import serve

        serve(talker, given.host, given.port, given.temperature, given.auth, given.url)
    else:
        from crs_jax.tools.chat.terminal import talk

        talk(talker, given.temperature)
