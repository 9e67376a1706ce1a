"""ReDial: movie recommendations between two people (Li et al. 2018), with times of messages and what was liked.

GPT-2 medium from the hub, for a GPU or TPU; the sentiment classifier needs the extra `roberta`:
  python -m crs_jax.main --config=configs/redial_ppo.py

These are estimates; it has not been run on these machines.
  Arithmetic: SFT 1.1e16, reward .8e16, PPO 2.7e16, evaluation 1e16 FLOP. At 30 % of the peak of an H200 3 minutes, at
    40 % of that of one v5e chip 12, of a v5e-8 2. Beside it stand compiling (minutes for each of PPO's two widths) and
    RoBERTa, which runs on the host: 59,000 texts, 1.7e14 FLOP, 3 minutes on 16 cores and 15 on two. So expect half an
    hour on an H200 or a v5e-8, three quarters of one on a v5e chip.
  Disk: 364,473,406 parameters, 1.46 GB. A checkpoint of SFT has them 5 times (with Adam's moments, the average and the
    best so far: 7.3 GB), of the reward model and of PPO 4 times (5.8 GB). Two of each are kept and a third is written
    before the oldest goes: 45 GB, and 2.2 GB of the hub's files in HF_HOME.
  Memory: PPO's iteration, compiled ahead of time for one v5e chip (python -m crs_jax.benchmark.ahead
    --config=configs/redial_ppo.py --topology=v5e:2x2 --chips=1), takes 9.9 of its 16 GiB, and the policy that is kept
    1.4 more; on each chip of a v5e-8 (--topology=v5e:2x4) 9.6, and far less with --config.mesh.fsdp=8. SFT holds 6
    times the parameters, 8.1 GiB, and activations of about 4 (by hand; --config.sft.accumulate=2 halves them). All is
    small for an H200, which has 141 GB.

From nothing, without a hub, for a CPU with two cores:
  python -m crs_jax.main --config=configs/redial_ppo.py:scratch --config.data.dir=FOLDER

Last run of :scratch with --config.stages=sft,evaluate: 38 to 42 minutes a seed on one core that was partly shared, 4.3M
parameters, 3,331 training dialogues, seeds 0, 1, 2, commit ae99fb6: test, fresh targets, full catalogue, mean
HR@1/10/50 .040/.195/.383.

The paper's setting on that: SFT of the words alone, and PPO, which also reads the evidence, against relevance and
sentiment shift:
  python -m crs_jax.main --config=configs/redial_ppo.py:paper --config.data.dir=FOLDER

Last run of :paper, seed 20, which nothing was chosen on, an hour and 40 minutes on two cores that other programs shared
(commit f3e3f77 with contexts=16 group=4 slate_batches=16 minibatches=8 epochs=2, which are its settings now; 3,379
training dialogues), no warnings; test, fresh, full catalogue, HR@1/5/10/50 and NDCG@5. Over five such seeds (20, 22,
24, 26, 28) HR@5 goes from .084 to .099 on average, by .012 to .019 in each:
  sft      .026 .082 .133 .309  .054
  ppo      .031 .101 .156 .340  .066
  rerank   .025 .079 .125 .305  .052
  optimum  .031 .101 .154 .336  .066

All stages on a sample, for a CPU with two cores:
  python -m crs_jax.main --config=configs/redial_ppo.py:tiny --config.data.dir=FOLDER

FOLDER holds ReDial's official train_data.jsonl, test_data.jsonl and movies_with_mentions.csv, and where you have it
movies_metadata.json (genres, plots and people). Without it the dialogues come from the hub, and genres and people from
--config.data.metadata=FILE, which `python -m crs_jax.data.imdb` makes of IMDb's tables.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = "") -> ConfigDict:
    paper = ", or configs/redial_ppo.py:paper (SFT of words alone)"
    c = variants.get_config("redial_ppo.py", "scratch" if variant == "paper" else variant, paper)
    c.data.dataset = "redial"
    if variant == "paper":
        _words_alone(c)
    if not variant:
        c.data.hub = "community-datasets/re_dial"
    c.lock()
    return c


def _words_alone(c: ConfigDict) -> None:
    """SFT reads the words, PPO the evidence too."""
    c.model.leave_out = ("text", "asked", "named", "near", "people")
    c.reward.alpha = 0.0
    c.ppo.evidence = "all"
    c.ppo.recommending = True
    c.ppo.query_rate = 300.0
    c.ppo.contexts = 16
    c.ppo.slate_batches = 16
    c.ppo.minibatches = 8
    c.ppo.all_acts = 128
    c.ppo.act_kl = 0.5
    c.ppo.word_kl = 5.0
    c.ppo.iterations = 60
    c.ppo.validation_contexts = 512
