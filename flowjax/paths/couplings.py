r"""Couplings: which noise belongs to which example. They run on the host, in the data loader, on NumPy arrays.

Any joint law of (x0, x1) with the right marginals gives a valid flow. Matching a batch of noise to a batch of data by
optimal transport (Pooladian et al. 2023, Tong et al. 2023) shortens and straightens the paths:

    minimise over permutations p    sum_i |noise_p(i) - data_i|^2.                (1)

The data stay where they are and only the noise is chosen, so labels, masks and rows remain with their examples. With
conditions, (1) would make the noise of one label differ from the noise sampling starts from; `within_label` matches
inside each label, which keeps it normal, at the price of longer paths.
"""

from collections.abc import Callable

import numpy as np

from flowjax.paths.transport import assignment, sinkhorn_plan, sinkhorn_potentials

HostBatch = dict[str, np.ndarray]
Coupling = Callable[[HostBatch, np.random.Generator], HostBatch]


def independent() -> Coupling:
    """Noise independent of the data. The batch stays as it is: the loss draws the noise."""
    return lambda batch, rng: batch


def optimal_transport(within_label: bool = False) -> Coupling:
    """Pairs by the exact solution of (1): every noise is used once. O(b^3): for batches up to about a thousand."""

    def couple(batch: HostBatch, rng: np.random.Generator) -> HostBatch:
        noise = _draw(batch, rng)
        return {**batch, "noise": noise[assignment(_cost(batch, noise, within_label))]}

    return couple


def sinkhorn(regularization: float = 0.01, within_label: bool = False, tolerance: float = 1e-3) -> Coupling:
    """Pairs drawn from the entropic plan: each example draws one noise from its row of the plan.

    Args:
      regularization: epsilon in units of the mean squared distance: 0 tends to (1), a large one to independence.
      within_label: match inside each label.
      tolerance: mass that may lie on wrong rows of the plan. A plan that does not reach it is an error.
    """
    if not regularization > 0:
        raise ValueError(
            f"The Sinkhorn coupling has regularization={regularization}; expected a positive number. For none, use "
            "the coupling 'optimal_transport'."
        )

    def couple(batch: HostBatch, rng: np.random.Generator) -> HostBatch:
        noise = _draw(batch, rng)
        plan = _plan(_cost(batch, noise, within_label), regularization, tolerance)
        reached = np.cumsum(plan, axis=1)
        drawn = rng.random((len(noise), 1)) * reached[:, -1:]
        return {**batch, "noise": noise[np.argmax(reached > drawn, axis=1)]}

    return couple


def stored() -> Coupling:
    """Pairs that come with the data, such as the (noise, sample) pairs of a teacher's flow."""

    def couple(batch: HostBatch, rng: np.random.Generator) -> HostBatch:
        if "noise" not in batch:
            listed = ", ".join(sorted(batch))
            raise ValueError(
                f"The coupling 'stored' needs batches with 'noise'; this one has {listed}. Use a source of pairs, or "
                "another coupling."
            )
        return batch

    return couple


def _draw(batch, rng):
    if "noise" in batch:
        raise ValueError(
            "The batch already has 'noise', which this coupling would replace. Use the coupling 'stored' to keep it."
        )
    return rng.standard_normal(batch["data"].shape, dtype=np.float32)


def _cost(batch, noise, within_label):
    """cost[i, j] = |data_i - noise_j|^2, infinite between groups that must not mix: labels, examples and padding."""
    data, noise = (np.reshape(x, (len(x), -1)).astype(np.float64) for x in (batch["data"], noise))
    cost = np.maximum((data**2).sum(1)[:, None] + (noise**2).sum(1) - 2 * data @ noise.T, 0.0)
    groups = [batch["mask"]] if "mask" in batch else []
    if within_label:
        if "label" not in batch:
            raise ValueError("The coupling has within_label=True, but the batch has no 'label'. Set it to False.")
        groups.append(batch["label"])
    for group in groups:
        cost[group[:, None] != group] = np.inf
    return cost


def _plan(cost, regularization, tolerance):
    """The entropic plan, computed on the CPU so that the loader leaves the accelerator to training."""
    import jax

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        scaled = jax.numpy.asarray(cost / np.mean(cost[np.isfinite(cost)]), jax.numpy.float32)
        potentials = sinkhorn_potentials(scaled, regularization, tolerance)
        if not potentials.error <= tolerance:
            raise RuntimeError(
                f"Sinkhorn stopped with {float(potentials.error):.1e} of the mass on wrong rows; the tolerance is "
                f"{tolerance:.1e}. Raise `regularization` or `tolerance`, or use the coupling 'optimal_transport'."
            )
        return np.asarray(sinkhorn_plan(scaled, potentials, regularization), np.float64)


COUPLINGS: dict[str, Callable[..., Coupling]] = {
    "independent": independent,
    "optimal_transport": optimal_transport,
    "sinkhorn": sinkhorn,
    "stored": stored,
}
