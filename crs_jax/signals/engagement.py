"""Engagement: how long and how far the seeker went along with a recommender's message. A weak label from logs.

Five parts, none of which reads the questionnaires (`liked`, `seen`), which are answers and not behaviour:
  dwell: log reply latency less what reading and typing explain, by a least-squares fit on train; with a log of dwell
    times (`signals/feedback_log.py`) the log of those less what reading explains;
  length: log number of words in the reaction;
  continuation: 0 the seeker never answers, 1/2 answers and then says no more, 1 answers and speaks again later;
  uptake: 1 where the reaction names a proposed item or accepts in words (`ACCEPTS`), less 1 where it refuses in words
    (`REFUSES`);
  clicks: log number of clicks on what was proposed, where a log has them.
Each is standardised on train and clipped; the score is their weighted mean over the parts that are known. A part that
is missing (no times in the corpus, nothing proposed) leaves the mean, it is never taken for zero.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from crs_jax.data.dialogue import Dialogue
from crs_jax.runtime.errors import InputError
from crs_jax.signals.feedback_log import FeedbackLog, Logged
from crs_jax.signals.reactions import Reaction, plain_text, reactions, words_of
from crs_jax.signals.registry import Sources

PARTS = ("dwell", "length", "continuation", "uptake", "clicks")
CLIP = 3.0  # standard deviations; a seeker who left the desk for ten minutes is not ten minutes engaged

ACCEPTS = re.compile(
    r"(?<!n't )(?<!not )(?<!not a )\b(?:"
    r"i(?:'?ll| will| shall|'m going to| am going to| would like to|'d like to|'d love to| would love to| want to)"
    r"(?: \w+ly| also| have to)? (?:watch|see|check|try|give|rent|look (?:it|that|this|for|into))"
    r"|(?:will|gonna|must|have to|going to|definitely|should) (?:watch|check|give (?:it|that|them) a)"
    r"|sounds? (?:\w+ )?(?:good|great|perfect|interesting|awesome|fun|amazing|nice|cool|like a (?:good|great))"
    r"|(?:on|to) my (?:watch ?)?list|can(?:'t|not) wait|i'm sold|good (?:suggestion|recommendation|pick|choice)"
    r"|great (?:suggestion|recommendation|pick|choice)"
    r")",
    re.IGNORECASE,
)

REFUSES = re.compile(
    r"\bnot (?:really )?(?:a (?:big |huge )?fan|my (?:thing|kind|type|cup|style|taste|favorite)|into|for me|interested"
    r"|(?:quite )?what i)"
    r"|\b(?:didn'?t|did not|don'?t|do not|never) (?:really |much |particularly )?(?:like|love|care for|enjoy)"
    r"|\bno,? (?:thanks|thank you)|\bsomething (?:else|different|less|more|newer|older)"
    r"|\btoo (?:scary|old|long|violent|sad|slow|gory|silly|dark)"
    r"|(?<!n't )(?<!not )(?<!never )\b(?:hate|hated|boring|terrible|awful|dumb|stupid|disappoint\w*)\b"
    r"|\b(?:not|wasn'?t|isn'?t) (?:very |that |so |really |too |a )?(?:good|great|funny|impressed)"
    r"|\bpass on\b|\brather not",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class EngagementModel:
    """What was fitted on train, plain numbers.

    Attributes:
      dwell_weights: intercept, slope of log(1 + words read), slope of log(1 + words typed); None where train has no
        times.
      mean, std: of each part on train; a part absent or constant there is left out of both, and so of the score.
      weights: of each part in the score.
      log: logged dwell times and clicks; empty without.
    """

    dwell_weights: tuple[float, float, float] | None
    mean: Mapping[str, float]
    std: Mapping[str, float]
    weights: Mapping[str, float]
    log: FeedbackLog = dataclasses.field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        dialogues: Sequence[Dialogue],
        weights: Mapping[str, float] | None = None,
        log: FeedbackLog | None = None,
    ) -> EngagementModel:
        """Fits on the training dialogues.

        Args:
          dialogues: of train alone.
          weights: of the parts, by name; default: all 1. A part left out, or with weight 0, does not count.
          log: of dwell times and clicks, of any split.
        """
        weights = dict.fromkeys(PARTS, 1.0) if weights is None else dict(weights)
        unknown = sorted(set(weights) - set(PARTS))
        if unknown:
            raise InputError(f"engagement weights: {unknown[0]!r} is not a part; the parts are {', '.join(PARTS)}")
        negative = next((part for part in weights if not weights[part] >= 0), None)
        if negative:
            raise InputError(f"engagement weights: {negative} is {weights[negative]}; give a number of at least 0")
        log = {} if log is None else log
        dwells = has_dwell(log)
        rows = [
            timing(r, logged_of(log, dialogue, r) if dwells else None)
            for dialogue in dialogues
            for r in reactions(dialogue)
        ]
        timed = np.array([row for row in rows if row is not None], dtype=np.float64)
        dwell_weights = None
        if len(timed) >= 3:
            design = np.column_stack([np.ones(len(timed)), timed[:, 1:]])
            solution = np.linalg.lstsq(design, timed[:, 0], rcond=None)[0]
            dwell_weights = (float(solution[0]), float(solution[1]), float(solution[2]))
        model = cls(dwell_weights, {}, {}, weights, log)
        values = model.parts(dialogues)
        mean, std = {}, {}
        for part in PARTS:
            flat = np.concatenate(values[part]) if values[part] else np.zeros(0)
            flat = flat[~np.isnan(flat)].astype(np.float64)
            if len(flat) and flat.std() > 1e-6:
                mean[part], std[part] = float(flat.mean()), float(flat.std())
        return cls(dwell_weights, mean, std, weights, log)

    @classmethod
    def of(cls, sources: Sources) -> EngagementModel:
        """Fitted with the weights and the log that a run names."""
        return cls.fit(sources.train, sources.settings["engagement"], sources.log)

    def parts(self, dialogues: Sequence[Dialogue]) -> dict[str, list[np.ndarray]]:
        """Raw value of each part: for each dialogue float32 [turns], NaN where it is not defined.

        Only a recommender's message that ends a run of them has values: dwell and length where the seeker answers
        (dwell where both times are known, or where it was logged), continuation always, uptake where its run proposes
        an item, clicks where they were logged.
        """
        out: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
        dwells = has_dwell(self.log)
        for dialogue in dialogues:
            arrays = {part: np.full(len(dialogue.turns), np.nan, dtype=np.float32) for part in PARTS}
            for reaction in reactions(dialogue):
                t = reaction.turn
                arrays["continuation"][t] = 0.0 if not reaction.after else 1.0 if reaction.returns else 0.5
                arrays["uptake"][t] = uptake(reaction)
                if reaction.after:
                    arrays["length"][t] = np.log1p(words_of(reaction.after))
                logged = logged_of(self.log, dialogue, reaction)
                if logged is not None and logged.clicks is not None:
                    arrays["clicks"][t] = np.log1p(logged.clicks)
                times = timing(reaction, logged if dwells else None)
                if times is not None and self.dwell_weights is not None:
                    log_latency, *lengths = times
                    intercept, read, typed = self.dwell_weights
                    arrays["dwell"][t] = log_latency - (intercept + read * lengths[0] + typed * lengths[1])
            for part in PARTS:
                out[part].append(arrays[part])
        return out

    def standardised(self, dialogues: Sequence[Dialogue]) -> dict[str, list[np.ndarray]]:
        """The parts in standard deviations of train, clipped at `CLIP`; all NaN for a part train could not scale."""
        values = self.parts(dialogues)
        out = {}
        for part in PARTS:
            mean, std = self.mean.get(part, np.nan), self.std.get(part, np.nan)
            out[part] = [np.clip((x - mean) / std, -CLIP, CLIP).astype(np.float32) for x in values[part]]
        return out

    def score(self, dialogues: Sequence[Dialogue]) -> list[np.ndarray]:
        """The label: for each dialogue float32 [turns], NaN where no part is known."""
        scaled = self.standardised(dialogues)
        weight_C = np.array([self.weights.get(part, 0.0) for part in PARTS])
        out = []
        for d in range(len(dialogues)):
            value_CT = np.stack([scaled[part][d] for part in PARTS]).astype(np.float64)
            weight_CT = np.where(np.isnan(value_CT), 0.0, weight_C[:, None])
            total_T = weight_CT.sum(axis=0)
            score_T = (np.nan_to_num(value_CT) * weight_CT).sum(axis=0) / np.where(total_T > 0, total_T, np.nan)
            out.append(score_T.astype(np.float32))
        return out

    def to_json(self) -> str:
        """Everything fitted, as JSON; the log is not."""
        return json.dumps({name: value for name, value in dataclasses.asdict(self).items() if name != "log"})

    @classmethod
    def from_json(cls, text: str) -> EngagementModel:
        """Reads what `to_json` wrote."""
        record = json.loads(text)
        fitted = record["dwell_weights"]
        return cls(tuple(fitted) if fitted else None, record["mean"], record["std"], record["weights"])


def uptake(reaction: Reaction) -> float:
    """1 where the seeker names an item of the proposal or accepts in words, less 1 where they refuse in words.

    NaN where nothing is proposed.
    """
    proposed = {item for turn in reaction.proposal for item in turn.items}
    if not proposed:
        return float("nan")
    named = any(item in proposed for turn in reaction.after for item in turn.items)
    said = plain_text(reaction.after).replace("’", "'")
    return float(named or ACCEPTS.search(said) is not None) - float(REFUSES.search(said) is not None)


def availability(dialogues: Sequence[Dialogue], model: EngagementModel) -> dict[str, int]:
    """How many recommender turns each part is known for; `turns` counts those with a score.

    A part the model could not fit on train counts 0 everywhere: it is not in the score.
    """
    scaled = model.standardised(dialogues)
    out = {part: int(sum(np.count_nonzero(~np.isnan(x)) for x in scaled[part])) for part in PARTS}
    out["turns"] = int(sum(np.count_nonzero(~np.isnan(x)) for x in model.score(dialogues)))
    return out


def logged_of(log: FeedbackLog, dialogue: Dialogue, reaction: Reaction) -> Logged | None:
    """What the log has of the recommender's run of messages, summed; None without a log."""
    if not log:
        return None
    turns = range(reaction.turn + 1 - len(reaction.proposal), reaction.turn + 1)
    found = [log[key] for turn in turns if (key := (dialogue.dialogue_id, turn)) in log]
    dwell = [entry.dwell for entry in found if entry.dwell is not None]
    clicks = [entry.clicks for entry in found if entry.clicks is not None]
    return Logged(sum(dwell) if dwell else None, sum(clicks) if clicks else None)


def has_dwell(log: FeedbackLog) -> bool:
    """Whether it holds any dwell time; one of clicks alone leaves the corpus' own times in use."""
    return any(entry.dwell is not None for entry in log.values())


def timing(reaction: Reaction, logged: Logged | None = None) -> tuple[float, float, float] | None:
    """Log(1 + seconds to the first answer), log(1 + words read), log(1 + words typed); None where a time is missing.

    What was read is the recommender's whole run, what was typed the first message of the answer. A negative gap, as
    clocks give, counts as 0 seconds. With a log the seconds are those that were logged, and no typing is in them.
    """
    if logged is not None:
        if logged.dwell is None:
            return None
        return float(np.log1p(logged.dwell)), float(np.log1p(words_of(reaction.proposal))), 0.0
    if not reaction.after:
        return None
    sent, answered = reaction.proposal[-1].seconds, reaction.after[0].seconds
    if sent is None or answered is None:
        return None
    read, typed = words_of(reaction.proposal), words_of(reaction.after[:1])
    return float(np.log1p(max(answered - sent, 0.0))), float(np.log1p(read)), float(np.log1p(typed))
