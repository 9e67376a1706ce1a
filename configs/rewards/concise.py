"""A reward of one's own: replies of about a dozen words that ask or propose something.

  python -m crs_jax.main --config=configs/quickstart.py --config.reward.function=configs/rewards/concise.py:reward \
    --config.reward.delta=1.0

`crs_jax/training/own_reward.py` says what a reward is given and may return.
"""


def reward(context, reply, items):
    """-1 to 1: less the further the reply is from twelve words, half off where it neither asks nor proposes."""
    distance = min(abs(len(reply.split()) - 12) / 12, 1.0)
    return (1.0 - 2.0 * distance) * (1.0 if items or "?" in reply else 0.5)
