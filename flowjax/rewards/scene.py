r"""The parser of scenes as a reward: does a picture show what its caption says (flowjax/shapes/requirements.py)?

With v_1 ... v_k the verdicts, 1 or 0, on what the caption speaks of (the number of objects, their kind, colour, size and
texture, the relation, the background, the word), and `all` the verdict that the whole picture is right,

    judged='all'       all                                                                                         (1)
    judged='share'     (mean(v_1 ... v_k) + all) / 2                                                               (2)

(1) is what one wants, and tells a group of samples nothing if all are wrong. (2) tells such samples apart. The mean of the v
alone cannot be the reward: a red square and a blue circle have every kind and colour of "a red circle and a blue square", and
only `all` sees what belongs to what. With half the weight, however many verdicts there are, it leaves a sample that is wholly
right at least 1/2 above any other: worth more than all attributes without it.
"""

import numpy as np

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.rewards.calls import RewardMistake
from flowjax.rewards.pictures import check_pictures
from flowjax.rewards.reward import Reward
from flowjax.shapes import VERDICTS, VOCABULARY, detokenize, judge, understand
from flowjax.shapes.parse import parse

JUDGED = ("all", "share")
PARTS = tuple(name for name in VERDICTS if name != "all")


def scene(judged: str = "all", data: DataSpec | None = None) -> Reward:
    """Equation (1) or (2) of pictures [h, w, 3] in [-1, 1] under captions `tokens`; NaN where a picture is not finite.

    Args:
      judged: 'all' or 'share'.
      data: what samples and captions look like.
    """
    choose("what the reward 'scene' has judged", judged, dict.fromkeys(JUDGED))
    if data is not None:
        check_pictures("scene", data, (3,))
        if not data.text_length or data.vocabulary != len(VOCABULARY):
            raise ValueError(
                f"The reward 'scene' reads captions of scenes, token ids of {len(VOCABULARY)} words, and the data have "
                f"text_length={data.text_length} and vocabulary={data.vocabulary}. Use data 'shapes', or leave it out."
            )

    def score(samples, cond):
        if "tokens" not in cond:
            raise RewardMistake(f"needs the condition 'tokens', and there are {', '.join(cond) or 'none'}.")
        # What a caption means is kept, caption by caption (requirements.py), so that a group's caption is read once.
        verdicts = judge(parse(samples), understand(detokenize(cond["tokens"])))
        worth = verdicts["all"]
        if judged == "share":
            worth = (np.nanmean([verdicts[name] for name in PARTS], axis=0) + worth) / 2
        return np.where(np.isfinite(samples).all(axis=(1, 2, 3)), worth, np.nan)

    return Reward(score=score)
