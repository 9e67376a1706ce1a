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
  --trust-code   runs the Python files that the run's config names (`reward.function`, `plugins`)
  --web          a page instead of the terminal
  --host         address the page is served at. Default: 127.0.0.1, which this machine alone can reach
  --port         its port; 0 takes a free one. Default: 7860
  --auth         USER:PASSWORD that the page asks for; or, where others would see it on the command line, set
                 CRS_JAX_AUTH. Default: nobody is asked
  --url          that visitors use where a proxy stands before the page, such as https://talk.example.org

/reset begins a new talk, /quit ends, /help says what else there is.
"""

from __future__ import annotations

from crs_jax.runtime.program import leave, run_program, show_help

if __name__ == "__main__":
    show_help(__name__, __doc__)
    from crs_jax.tools.chat.program import main

    leave(run_program(main))
