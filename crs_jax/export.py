"""Writes a policy of a finished run as a Hugging Face folder, to keep, to pass on or to put on the hub.

  python -m crs_jax.export --workdir=runs/quickstart --out=shared/quickstart
  python -m crs_jax.chat --workdir=shared/quickstart
  hf upload OWNER/NAME shared/quickstart                # puts it on the hub; not done by this program

  --workdir    a run that has ended
  --out        the folder to make: safetensors, config, tokenizer, item table, model card
  --model      ppo, or sft, the policy before it. Default: ppo
  --licence    of weights and item table, as the hub names it (cc-by-4.0). Default: that of the corpus
  --data_dir   where the run's corpus is, if not where it was
  --trust-code runs the Python files that the run's config names (`reward.function`, `plugins`)
  --overwrite  replaces a folder that this program made before

`crs_jax.load(OUT)` gives the policy back, equal in every bit, without the run and its corpus. transformers loads its
words and layers: AutoModelForCausalLM.from_pretrained(OUT).
"""

from __future__ import annotations

from crs_jax.runtime.program import leave, run_program, show_help

if __name__ == "__main__":
    show_help(__name__, __doc__)
    from crs_jax.tools.export.program import main

    leave(run_program(main))
