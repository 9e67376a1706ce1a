"""Talks with a finished run.

  python -m crs_jax.chat --workdir=runs/quickstart                  # in the terminal
  python -m crs_jax.chat --workdir=runs/quickstart --model=both     # before and after PPO, side by side
  python -m crs_jax.chat --workdir=runs/quickstart --web            # a page in the browser; needs the extra `chat`
  echo "Something funny?" | python -m crs_jax.chat --workdir=runs/quickstart --seed=3

  --workdir      a run that has ended, or a folder that `python -m crs_jax.export` made of one
  --model        ppo, sft or both, each of which goes on from its own replies. Default: ppo; of the page both, but
                 with --log ppo
  --temperature  of replies; 0 takes the likeliest of each step. Default: 0.7
  --top          how many likeliest items, of those not named yet, stand beside a reply. Default: 5
  --seed         of the sampling. Default: 0
  --log          FILE.jsonl that what people say, what is replied and when is added to, on the page of those who agree;
                 nothing is kept without it
  --data_dir     where the run's corpus is, if not where it was
  --trust-code   runs the Python file that the run's config names as its reward (`reward.function`)
  --web          a page instead of the terminal
  --host         address the page is served at. Default: 127.0.0.1, which this machine alone can reach
  --port         its port; 0 takes a free one. Default: 7860
  --auth         USER:PASSWORD that the page asks for; or, where others would see it on the command line, set
                 CRS_JAX_AUTH. Default: nobody is asked
  --url          that visitors use where a proxy stands before the page, such as https://talk.example.org

/reset begins a new talk, /quit ends, /help says what else there is.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Sequence

from crs_jax import arguments
from crs_jax.chat.guard import netloc
from crs_jax.program import Parser, leave, run_program, show_help
from crs_jax.sharing import shared_model

FLAGS: tuple[tuple[str, type, object], ...] = (
    ("workdir", str, ""), ("model", str, ""), ("temperature", float, 0.7), ("top", int, 5), ("seed", int, 0),
    ("log", str, ""), ("data_dir", str, ""), ("host", str, "127.0.0.1"), ("port", int, 7860), ("auth", str, ""),
    ("url", str, ""),
)  # fmt: skip
"""Name, kind and default of the flags with a value."""


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; `InputError` for what cannot be used."""
    parser = Parser(prog="python -m crs_jax.chat", description=__doc__, usage=argparse.SUPPRESS,
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
        from crs_jax.chat.web import require_gradio

        require_gradio()
    from crs_jax.api import load
    from crs_jax.chat.conversation import Talker
    from crs_jax.chat.feedback import FeedbackWriter

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
        from crs_jax.chat.web import serve

        serve(talker, given.host, given.port, given.temperature, given.auth, given.url)
    else:
        from crs_jax.chat.terminal import talk

        talk(talker, given.temperature)


if __name__ == "__main__":
    show_help(__name__, __doc__)
    leave(run_program(main))
