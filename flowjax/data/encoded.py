r"""Captions encoded by a frozen text encoder on the way to the batch.

    source: data, tokens  ->  captions as text  ->  the encoder's own word pieces  ->  text, text_mask, text_pooled

A caption is encoded once and then remembered, so the first pass over a data set of some thousand captions pays for the
encoder and every other pass is a look-up. The encoder runs on the host's processor, in pieces of one size, beside the
training that it feeds; what it makes of a caption does not depend on the captions around it, so batches are a function
of (seed, step) as before. For sets too large to be remembered, flowjax/data/caches.py keeps vectors on disk.

`text_pooled`, which is optional, is one vector for the whole caption: the mean of those of its word pieces, scaled to unit
length, as MiniLM compares sentences. An empty caption has a vector of zeros, like one that is dropped for guidance.

The source's own ids stay in the batch as `tokens`: the network does not read them, pictures and evaluators do.
"""

import collections
import dataclasses
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int, PyTree

from flowjax.choices import Spec, build
from flowjax.contract import DataSpec
from flowjax.data.fingerprints import plain_hash, source_fingerprint, tree_hash
from flowjax.data.tokenizers import UNKNOWN_WORD, Tokenizer, make_tokenizer, meaning
from flowjax.models.text.minilm import TOKENIZER, encode_tokens, load_minilm, minilm_folder, sentence_vectors

PIECE = 32  # captions that are encoded in one call
MOST = 65_536  # captions that are remembered, unless told: some 0.8 GB of short ones


class CaptionTable:
    """Captions to vectors, each encoded when it is first asked for; of more than `most`, the oldest are forgotten."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        encode: Callable[[np.ndarray], tuple[Any, ...]],
        channels: int,
        most: int = MOST,
        pooled_channels: int = 0,
    ):
        """Args:
        tokenizer: captions to the encoder's ids, 0 for padding.
        encode: ids [PIECE, length] -> vectors [PIECE, length, channels] and their mask; with pooled_channels also a vector
          [PIECE, pooled_channels] for each whole caption.
        channels: the size of a vector.
        most: how many captions are remembered.
        pooled_channels: the size of the vector of a whole caption, 0 for none.
        """
        self.tokenizer, self.channels, self.pooled_channels = tokenizer, channels, pooled_channels
        self._encode, self._most, self._warned = encode, most, False
        self._known: collections.OrderedDict[str, tuple[np.ndarray, ...]] = collections.OrderedDict()
        self._lock = threading.Lock()  # grain may ask from several threads

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """`text` float32 [n, length, channels] and `text_mask` bool [n, length]; an empty caption is hidden whole.

        With pooled_channels also `text_pooled` float32 [n, pooled_channels].
        """
        text = np.zeros((len(captions), self.tokenizer.length, self.channels), np.float32)
        mask = np.zeros(text.shape[:2], bool)
        pooled = np.zeros((len(captions), self.pooled_channels), np.float32)
        with self._lock:
            found = {caption: self._known[caption] for caption in set(captions) if caption in self._known}
            missing = sorted({caption for caption in captions if caption and caption not in found})
            for first in range(0, len(missing), PIECE):
                found |= self._encoded(missing[first : first + PIECE])
            for caption in found:
                self._known[caption] = found[caption]
                self._known.move_to_end(caption)
            if len(self._known) > self._most:
                self._warn()
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        for row, caption in enumerate(captions):
            if caption:
                vectors, *whole = found[caption]
                text[row, : len(vectors)], mask[row, : len(vectors)] = vectors, True
                if whole:
                    pooled[row] = whole[0]
        return {"text": text, "text_mask": mask, **({"text_pooled": pooled} if self.pooled_channels else {})}

    def _warn(self) -> None:
        if not self._warned:
            warnings.warn(
                f"There are more than {self._most} different captions, so some are encoded again and again, and training "
                "waits for them. Let more be remembered (data.most).",
                stacklevel=2,
            )
        self._warned = True

    def _encoded(self, captions: Sequence[str]) -> dict[str, tuple[np.ndarray, ...]]:
        """Caption -> the vectors of its word pieces, and of all of it where such are asked for."""
        tokens = np.zeros((PIECE, self.tokenizer.length), np.int32)
        tokens[: len(captions)] = self.tokenizer.encode(captions)
        vectors, _, *whole = map(np.asarray, self._encode(tokens))
        return {
            caption: (np.array(vectors[row][tokens[row] != 0]), *(np.array(array[row]) for array in whole))
            for row, caption in enumerate(captions)
        }


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A captioned source whose batches hold what a CaptionTable says as well; whatever else it offers is offered on.

    Attributes:
      source: with captions as token ids, and a tokenizer that reads them back.
      table: captions to vectors.
      spec: of the data with encoded captions.
      encoder: a hash of what encodes.
    """

    source: Any
    table: CaptionTable
    spec: DataSpec
    encoder: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def size(self) -> int | None:
        """The number of training examples."""
        return self.source.size

    def encode_text(self, tokens: Int[np.ndarray, "n l"]) -> dict[str, np.ndarray]:
        """What the table says of captions given as the source's ids: of prompts, for one."""
        captions = self.source.tokenizer.decode(np.asarray(tokens))
        for caption in captions:
            if UNKNOWN_WORD in caption:
                raise ValueError(
                    f"The source's tokenizer has lost a word of a caption before it could be encoded: '{caption}'. Give the "
                    "source tokenizer=dict(name='bytes'), which keeps captions as they are."
                )
        return self.table(captions)

    def _with_text(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**rows, **self.encode_text(rows["tokens"])}

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the source's, with encoded captions."""
        return self.source.dataset(seed, batch_size, start, stop).map(self._with_text)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """The source's real examples, with encoded captions."""
        return self._with_text(dict(self.source.reference(split, count, seed)))

    @property
    def examples(self) -> Callable[..., Any]:
        """Reads examples as they are stored, with encoded captions; absent where the source cannot."""
        read = self.source.examples
        if self.size is None:  # nothing is stored, and what goes by this name is the source's own affair
            return read
        return lambda split, first, last: self._with_text(dict(read(split, first, last)))

    def fingerprint(self) -> str:
        """Of the source and the encoder."""
        return plain_hash(source=source_fingerprint(self.source), encoder=self.encoder)


def with_minilm(
    source: Any, parameters: PyTree, tokenizer: Tokenizer, most: int = MOST, pooled: bool = False
) -> EncodedSource:
    """A captioned source with MiniLM's vectors of its captions.

    Args:
      source: with captions as token ids.
      parameters: of the encoder, as load_minilm gives them.
      tokenizer: the encoder's word pieces; its length is the number of vectors of a caption.
      most: captions that are remembered; a vector takes 1.5 kB.
      pooled: whether there is a vector for each whole caption as well.
    """
    if getattr(source, "tokenizer", None) is None or not source.spec.vocabulary:
        raise ValueError(
            "Only captions can be encoded, and this source gives none as token ids. Set its tokenizer, for example "
            "tokenizer=dict(name='bytes'), which keeps captions as they are."
        )
    channels = parameters["words"].shape[1]
    heads = channels // 32  # MiniLM's heads have 32 channels
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use an accelerator only
        device = jax.local_devices()[0]
    parameters = jax.device_put(parameters, device)

    @jax.jit
    def program(parameters, tokens):
        text, mask = encode_tokens(parameters, tokens, heads=heads)
        return (text, mask, sentence_vectors(text, mask)) if pooled else (text, mask)

    encode = lambda tokens: program(parameters, jax.device_put(tokens, device))
    whole = channels if pooled else 0
    facts = dict(parameters=tree_hash(parameters), tokenizer=tokenizer.fingerprint())
    text = dict(text_length=tokenizer.length, vocabulary=0, text_channels=channels, pooled_channels=whole)
    words = plain_hash(**{**facts, "tokenizer": meaning(tokenizer)})
    spec = dataclasses.replace(source.spec, **text, words=words)
    digest = plain_hash(**facts, **({"pooled": True} if pooled else {}))
    return EncodedSource(source, CaptionTable(tokenizer, encode, channels, most, whole), spec, digest)


def encoded(
    source: Spec,
    encoder: str = "minilm",
    folder: str = "",
    text_length: int = 32,
    most: int = MOST,
    pooled: bool = False,
    seed: int = 0,
    total_steps: int | None = None,
) -> EncodedSource:
    """A captioned source, its captions encoded by a frozen text encoder.

    Args:
      source: the spec of the source, as in `config.data`, with captions: dict(name='emoji', tokenizer=dict(name='bytes')).
      encoder: 'minilm', all-MiniLM-L6-v2: 384 channels.
      folder: with its model.safetensors and tokenizer.json; where published weights lie on this machine, unless given.
      text_length: word pieces of a caption, the two marks included; longer captions are cut.
      most: captions that are remembered.
      pooled: a vector for each whole caption as well, `text_pooled`, which network 'mmdit' reads in the place of the mean of
        the others.
      seed: of the run, for sources that take it.
      total_steps: the length of the run, likewise.
    """
    from flowjax.data import SOURCES  # this source is one of them

    if encoder != "minilm":
        raise ValueError(f"Unknown text encoder '{encoder}' for encoded captions. Known: minilm.")
    inner = build("data source", source, SOURCES, seed=seed, total_steps=total_steps)
    place = minilm_folder(folder)
    pieces = make_tokenizer(dict(name="wordpiece", file=str(place / TOKENIZER), length=text_length))
    return with_minilm(inner, load_minilm(str(place)), pieces, most, pooled)
