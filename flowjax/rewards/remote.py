"""A reward behind HTTP: samples are posted, scores come back. The other end is flowjax/rewards/serve.py, or any program:

    request    POST, the body an .npz file: the array `samples` [b, ...], and an array [b, ...] for each condition
    reply      200, JSON {"scores": [b numbers]}, null for a sample that cannot be scored

A reply of 5xx, 408 or 429 is a failure and may be tried again. Any other status that is no success means that the request is
wrong, and is an error at once, like a reply that is no such JSON or has another number of scores.
"""

import functools
import http.client
import io
import json
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped

from flowjax.rewards.calls import Conditions, RewardMistake, check_limits, checked, in_parts, patiently, within
from flowjax.rewards.reward import Reward

SAMPLES, SCORES = "samples", "scores"
TRANSIENT = (408, 429)  # statuses below 500 that another try may mend
SHOWN = 300  # characters of a reply that is shown in an error
OWN = ("localhost", "127.0.0.1", "::1")  # this machine, which no proxy stands before


def remote(url: str, timeout: float = 60.0, retries: int = 0, batch: int | None = None) -> Reward:
    """A reward that a server gives.

    Args:
      url: where samples are posted to.
      timeout: seconds for one request, from its start to the last byte of the reply.
      retries: after a request that failed or took too long.
      batch: samples of a request; all of them unless told.
    """
    check_limits("http", batch, timeout, retries)
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"The reward 'http' has url='{url}'; expected one such as 'http://127.0.0.1:8000'.")
    proxies = [urllib.request.ProxyHandler({})] if address.hostname in OWN else []
    opener = urllib.request.build_opener(*proxies)
    ask = functools.partial(_ask, opener, url, timeout)

    def score(samples, cond):
        attempt = lambda part, its: patiently(lambda: ask(part, its), retries)
        return in_parts(attempt, samples, cond, batch or max(len(samples), 1))

    return Reward(score=score)


def _ask(
    opener: urllib.request.OpenerDirector, url: str, timeout: float, samples: np.ndarray, cond: Conditions
) -> Float[np.ndarray, " b"]:
    request = urllib.request.Request(url, pack(samples, cond), {"Content-Type": "application/octet-stream"})
    late = f"{url} gave no reply for {len(samples)} samples within timeout={timeout:g} s."

    def send() -> bytes:
        try:
            with opener.open(request, timeout=timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            said = error.read(SHOWN).decode(errors="replace").strip()
            message = f"{url} replied {error.code} {error.reason}: {said}"
            if error.code >= 500 or error.code in TRANSIENT:
                raise RuntimeError(message) from None
            raise RewardMistake(f"{message} The server takes no such request: is this its address?") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise TimeoutError(late) from None
            raise RuntimeError(f"{url} cannot be reached, or broke off: {reason!r}. Does its server run?") from error

    return read_scores(within(send, timeout, late), len(samples), url)


def read_scores(text: bytes, count: int, url: str) -> Float[np.ndarray, " b"]:
    """The scores of a reply.

    Args:
      text: its body.
      count: of the samples.
      url: for messages.
    """
    try:
        scores = json.loads(text)[SCORES]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        shown = text[:SHOWN].decode(errors="replace")
        raise RewardMistake(f'{url} replied {shown!r}; expected JSON {{"{SCORES}": [numbers]}}.') from error
    if isinstance(scores, list):
        scores = [np.nan if score is None else score for score in scores]
    return checked(scores, count, url)


def pack(samples: Shaped[np.ndarray, "b ..."], cond: Conditions) -> bytes:
    """The body of a request: an .npz file.

    Args:
      samples: the array `samples`.
      cond: the other arrays.
    """
    if SAMPLES in cond:
        raise RewardMistake(f"A condition is named '{SAMPLES}', which is what the samples are called in a request.")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {SAMPLES: samples, **cond}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    return file.getvalue()


def unpack(body: bytes, limit: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """Samples and conditions of a request. A body that is no such file is a ValueError.

    Args:
      body: an .npz file.
      limit: the most bytes that its arrays may have.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > limit:
            raise ValueError(f"its arrays have {size:,} bytes, and {limit:,} are allowed")
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            arrays = dict(file)
    # The last of these is what zipfile raises for a compression that it has not.
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"The body is no .npz file that is read here: {error}.") from error
    if SAMPLES not in arrays:
        raise ValueError(f"The .npz file has no array '{SAMPLES}', only {', '.join(arrays) or 'nothing'}.")
    samples = arrays.pop(SAMPLES)
    for name, array in {SAMPLES: samples, **arrays}.items():
        if not array.ndim or len(array) != len(samples):
            raise ValueError(f"'{name}' has shape {array.shape}; expected one row for each sample.")
    return samples, arrays
