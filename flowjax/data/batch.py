"""What a batch must look like before it meets a compiled step; the messages say what to do."""

from collections.abc import Mapping

import numpy as np

from flowjax.contract import COMPARED, DataSpec

WIDE = "float64, int64 and object arrays have no place in a batch: JAX would narrow or refuse them silently"


def check_batch(batch: Mapping[str, np.ndarray], spec: DataSpec) -> None:
    """Raises a ValueError unless the batch follows the contract (flowjax/contract.py) and fits the data's spec."""
    for name in ("data", "mask", "row"):
        if name not in batch:
            raise ValueError(
                f"The batch has no '{name}'. It has {', '.join(sorted(batch)) or 'nothing'}; every batch needs data, "
                "mask (1 for an example, 0 for padding) and row (the example's index in the global batch)."
            )
    count = batch["data"].shape[0] if batch["data"].ndim else 0
    for name, value in batch.items():
        if value.ndim == 0 or value.shape[0] != count:
            raise ValueError(
                f"The batch entry '{name}' has shape {value.shape}; its first axis must be the {count} "
                "examples of 'data'."
            )
        if value.dtype in (np.float64, np.int64, np.uint64) or value.dtype == object:
            raise ValueError(f"The batch entry '{name}' is {value.dtype}; use float32, int32, uint8 or bool ({WIDE}).")
    for name in ("data", "noise"):
        if name in batch and batch[name].shape[1:] not in (spec.shapes or (tuple(spec.shape),)):
            allowed = " or ".join(str(tuple(shape)) for shape in spec.shapes or (spec.shape,))
            raise ValueError(
                f"The batch entry '{name}' has examples of shape {batch[name].shape[1:]}; the data spec says {allowed}."
            )
        if name in batch and batch[name].dtype != np.float32:
            raise ValueError(
                f"The batch entry '{name}' is {batch[name].dtype}; it must be float32, scaled to about unit size."
            )
    if batch["mask"].dtype != np.float32:
        raise ValueError(
            f"The batch entry 'mask' is {batch['mask'].dtype}; it must be float32, 1 for an example and 0 for padding."
        )
    if not np.isin(batch["mask"], (0, 1)).all():
        raise ValueError(f"The batch entry 'mask' holds {np.unique(batch['mask'])[:5]}; it may only hold 0 and 1.")
    if batch["row"].dtype != np.int32:
        raise ValueError(
            f"The batch entry 'row' is {batch['row'].dtype}; it must be int32, the index in the global batch."
        )
    if spec.feature_shape and batch.get("features", np.zeros(1)).shape[1:] != tuple(spec.feature_shape):
        found = f"features of shape {batch['features'].shape[1:]}" if "features" in batch else "no 'features'"
        raise ValueError(
            f"The data spec has features of shape {tuple(spec.feature_shape)}, but the batch has {found}. A cache of `data` "
            "does not keep them: leave out the cache of latents, or the features."
        )
    if spec.observation_shape:
        found = batch.get("observation", np.zeros(1))
        if found.shape[1:] != tuple(spec.observation_shape) or found.dtype != np.float32:
            raise ValueError(
                f"The data spec has observations of shape {tuple(spec.observation_shape)}; the batch entry 'observation' is "
                + (f"{found.dtype}{list(found.shape)}" if "observation" in batch else "missing")
                + "; it must be float32, one for each example."
            )
    _check_comparisons(batch, spec)
    _check_masks(batch, spec)
    if spec.num_classes is not None:
        _check_label(batch, spec.num_classes)
    _check_captions(batch, spec)


def _check_comparisons(batch: Mapping[str, np.ndarray], spec: DataSpec) -> None:
    given = [name for name in COMPARED if name in batch]
    if not spec.compared:
        if given:
            raise ValueError(
                f"The batch has '{given[0]}', but the data spec does not say that examples are compared. Give the spec "
                "`compared`, the number of examples of a comparison, or leave it out."
            )
        return
    rest = spec.compared - 1
    wanted: dict[str, tuple[tuple[int, ...], type]] = {"outcome": ((), np.int32)}
    if rest:
        wanted["others"] = ((rest, *spec.shape), np.float32)
    elif "others" in batch:
        raise ValueError(
            "The data spec says that examples were judged by themselves (compared=1), and the batch has 'others'. Give the "
            "spec the number of examples of a comparison, or leave them out."
        )
    if rest > 1:
        wanted["present"] = ((rest,), np.bool_)
    if "margin" in batch:
        wanted["margin"] = ((), np.float32)
    for name, (shape, kind) in wanted.items():
        found = f"{batch[name].dtype}{list(batch[name].shape)}" if name in batch else "missing"
        if name not in batch or batch[name].shape[1:] != shape or batch[name].dtype != kind:
            raise ValueError(
                f"The data spec has comparisons of {spec.compared} examples, and the batch entry '{name}' is {found}; it must "
                f"be {np.dtype(kind)}{['examples', *shape]}."
            )
    known = (-1, 0, 1) if rest < 2 else (1,)
    if not np.isin(batch["outcome"], known).all():
        raise ValueError(
            f"The outcomes of comparisons of {spec.compared} examples are {np.unique(batch['outcome'])[:5]}; expected of "
            f"{known}: a ranking has the best first."
        )


def _check_masks(batch: Mapping[str, np.ndarray], spec: DataSpec) -> None:
    if not spec.masked:
        if "pixel_mask" in batch:
            raise ValueError(
                "The batch has 'pixel_mask', but the data spec does not say that its images are smaller than their arrays, so "
                "no network would read it. Give the spec visible_shape, or leave the masks out."
            )
        return
    mask, shape = batch.get("pixel_mask", np.zeros(())), batch["data"].shape[:3]
    if mask.shape != shape or mask.dtype != np.bool_:
        found = f"{mask.dtype}{list(mask.shape)}" if "pixel_mask" in batch else "missing"
        raise ValueError(
            f"The data spec says that examples have masks, and the batch entry 'pixel_mask' is {found}; it must be "
            f"bool{list(shape)}, True inside an example's image."
        )
    if batch["data"][~mask].any() or not mask.any(axis=(1, 2)).all():
        raise ValueError(
            "An example has data that are not zero outside its 'pixel_mask', or a mask that is False everywhere. Every "
            "example shows something, and is zero where nothing is to be seen."
        )


def _check_label(batch: Mapping[str, np.ndarray], num_classes: int) -> None:
    if "label" not in batch:
        raise ValueError(f"The data spec has num_classes={num_classes}, but the batch has no 'label'.")
    label = batch["label"]
    if not np.issubdtype(label.dtype, np.integer) or label.ndim != 1:
        raise ValueError(
            f"The batch entry 'label' is {label.dtype}{list(label.shape)}; it must be one integer an example."
        )
    if label.size and not (label.min() >= 0 and label.max() < num_classes):
        raise ValueError(
            f"The labels run from {label.min()} to {label.max()}; with num_classes={num_classes} they must "
            f"be in [0, {num_classes})."
        )


def _check_captions(batch: Mapping[str, np.ndarray], spec: DataSpec) -> None:
    if "tokens" in batch and not spec.text_length:
        raise ValueError(
            "The batch has 'tokens', but the data spec has no captions, so no one would read them. Give the spec "
            "text_length and vocabulary, or leave the tokens out."
        )
    length, channels = spec.text_length, spec.text_channels
    wanted = {"tokens": ((length,), np.int32)} if spec.vocabulary else {}
    if channels:
        wanted = {"text": ((length, channels), np.float32), "text_mask": ((length,), np.bool_)}
    if spec.pooled_channels:
        wanted["text_pooled"] = ((spec.pooled_channels,), np.float32)
    for name, (shape, kind) in wanted.items():
        if name not in batch:
            kinds = "vectors" if channels else "token ids"
            raise ValueError(f"The data spec has captions of {length} {kinds}, but the batch has no '{name}'.")
        if batch[name].shape[1:] != shape or batch[name].dtype != kind:
            raise ValueError(
                f"The batch entry '{name}' is {batch[name].dtype}{list(batch[name].shape)}; the data spec says "
                f"{np.dtype(kind)}[examples, {', '.join(map(str, shape))}]."
            )
    tokens = batch["tokens"] if spec.vocabulary else np.zeros(0)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < spec.vocabulary):
        raise ValueError(
            f"The token ids run from {tokens.min()} to {tokens.max()}; with vocabulary={spec.vocabulary} they must be in "
            f"[0, {spec.vocabulary})."
        )
