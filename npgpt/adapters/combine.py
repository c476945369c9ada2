"""One adapter out of several: PEFT's add_weighted_adapter.

Adapter i changes a weight by D_i = s_i B_i A_i and has the weight w_i. The aim is sum_i w_i D_i, whose rank is sum_i
r_i. The methods differ in what they give up for a smaller rank, and in what they do to the parts before they add them.
"""

import dataclasses
import math

import numpy as np

from npgpt.adapters.matching import whole_name, whole_names
from npgpt.adapters.stack import attach, check_new, make_updates, updates
from npgpt.lora import LowRank
from npgpt.runtime.errors import ConfigError

METHODS = ("cat", "linear", "svd", "ties", "dare_linear", "dare_ties")


def add_weighted_adapter(model, adapters, weights, name, method="svd", rank=None, density=0.5, rng=None):
    """Combine adapters of `model` into a new one called `name`. It is then the only one in force; the others stay. In
    place; returns the model.

    adapters  names
    weights   numbers, one for each; a negative one subtracts an adapter
    method    "cat"          A = all w_i s_i A_i stacked, B = all B_i side by side: exact, of rank sum r_i
              "svd"          the best approximation of rank `rank` to the sum, from its singular values
              "linear"       A = sum sqrt(|w_i s_i|) sign A_i, B = sum sqrt(|w_i s_i|) B_i: cheap, of the same rank, and
                             far from the sum, since B A contains the products of one adapter's B with another's A.
                             The ranks must be equal
              "ties"         like "linear", but first each A and B keeps only its largest entries (the part `density`),
                             and each entry of the result is the mean of those with the sign of the majority
              "dare_linear"  like "linear", but first each A and B keeps random entries, with probability `density`,
                             and divides them by it
              "dare_ties"    the same, then the majority of signs as in "ties"
    rank      for "svd"; None: the largest rank of the adapters
    density   for "ties" and "dare": in (0, 1]
    rng       np.random.Generator for "dare"

    Adapters of PiSSA and OLoRA take part as plain LoRA of rank 2r, the form in which they are saved.
    In a module that only some of the adapters change, these are combined. Raises ConfigError for names, numbers and
    kinds of adapters that cannot be combined, before anything changes.

    Source    PEFT's methods; Yadav et al. 2023 (TIES), Yu et al. 2023 (DARE).
    """
    check_new(model, name)
    adapters, weights = list(adapters), list(weights)
    _check(adapters, weights, method, rank, density, rng)
    parts = {}  # whole name of a module -> [(weight, update), ...]
    for adapter, weight in zip(adapters, weights, strict=True):
        for module, update in updates(model, adapter).items():
            if not (isinstance(update, LowRank) and update.is_plain()):
                raise ConfigError(f"adapter {adapter!r} has more than low-rank updates at {module} (DoRA, a bias, "
                                  "or a module that trains whole): merge it instead of combining it")
            parts.setdefault(whole_name(module), []).append((weight, update))
    made = {module: _combined(each, method, rank, density, rng) for module, each in parts.items()}
    ranks = {module: len(A) for module, (A, _) in made.items()}
    first = next(iter(updates(model, adapters[0]).values())).config
    config = dataclasses.replace(
        first, r=max(ranks.values()), lora_alpha=max(ranks.values()), target_modules=tuple(made), exclude_modules=None,
        layers_to_transform=None, layers_pattern=None, rank_pattern=ranks, alpha_pattern=ranks, use_rslora=False,
        init_lora_weights=True)  # alpha = r in every module: s is 1, and stands in A and B
    fresh, layers = make_updates(model, config), whole_names(model)
    for module, (A, B) in made.items():
        dtype = layers[module].weight.dtype
        fresh[module].lora_A.data, fresh[module].lora_B.data = A.astype(dtype), B.astype(dtype)
    return attach(model, name, fresh)


def _check(adapters, weights, method, rank, density, rng):
    """Raise ConfigError for arguments that cannot be used, whatever the adapters are."""
    if not adapters or len(adapters) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(adapters)} adapters: give one for each, and one adapter at "
                          "least")
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not known; it must be one of {', '.join(METHODS)}")
    if not 0 < density <= 1:
        raise ConfigError(f"density = {density}: it must be above 0 and at most 1")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank = {rank}: it must be at least 1")
    if method.startswith("dare") and rng is None:
        raise ConfigError(f"{method} draws at random: pass rng, for example np.random.default_rng(0)")


def _combined(parts, method, rank, density, rng):
    """Return (A, B) of one module from its [(weight, update), ...]."""
    factors = [weight * update.scale for weight, update in parts]
    plain = [list(update.plain()[0].values()) for _, update in parts]
    As, Bs = ([arrays[i] for arrays in plain] for i in (0, 1))
    if method == "cat":
        return np.concatenate([f * A for f, A in zip(factors, As, strict=True)]), np.concatenate(Bs, axis=1)
    if method == "svd":
        return _truncated(factors, As, Bs, rank or max(len(A) for A in As))
    if len({len(A) for A in As}) > 1:
        raise ConfigError(f"method {method!r} adds A to A and B to B, and the ranks differ: "
                          f"{', '.join(str(len(A)) for A in As)}; 'cat' and 'svd' take any")
    roots = [math.sqrt(abs(f)) for f in factors]
    signed = [math.copysign(root, f) for root, f in zip(roots, factors, strict=True)]
    return (_added(np.stack(As), np.array(signed), method, density, rng),
            _added(np.stack(Bs), np.array(roots), method, density, rng))


def _truncated(factors, As, Bs, rank):
    """Return the best A and B of this rank for sum f_i B_i A_i, without forming the sum.

    With B = Q_B R_B over all columns and Aᵀ = Q_A R_A over all rows, the sum is Q_B (R_B R_Aᵀ) Q_Aᵀ. Its singular
    values are those of the small matrix in the middle, whose size is the sum of the ranks. """
    QB, RB = np.linalg.qr(np.concatenate([f * B for f, B in zip(factors, Bs, strict=True)], axis=1))
    QA, RA = np.linalg.qr(np.concatenate(As).T)
    U, S, Vt = np.linalg.svd(RB @ RA.T)
    A, B = Vt[:rank] @ QA.T, QB @ (U[:, :len(S)] * S)[:, :rank]
    missing = rank - len(A)  # the sum has a smaller rank: fill up with zeros
    return np.pad(A, ((0, max(missing, 0)), (0, 0))), np.pad(B, ((0, 0), (0, max(rank - B.shape[1], 0))))


def _added(tensors, factors, method, density, rng):
    """tensors (n, ...), factors (n,) -> (...): the weighted sum by one of the methods."""
    if method == "ties":
        keep = math.floor(density * tensors[0].size)
        for tensor in tensors.reshape(len(tensors), -1):
            tensor[np.argsort(-np.abs(tensor), kind="stable")[keep:]] = 0
    elif method.startswith("dare"):
        tensors = tensors * (rng.random(tensors.shape) < density) / density
    weighted = tensors * factors.reshape(-1, *[1] * (tensors.ndim - 1))
    if not method.endswith("ties"):
        return weighted.sum(axis=0)
    agree = np.sign(tensors) == np.where(tensors.sum(axis=0) >= 0, 1, -1)
    return (weighted * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
