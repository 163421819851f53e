"""A map of all features: their decoder directions laid out in the plane."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

N_NEIGHBOURS = 15
"""Nearest other directions of every feature that the layout is made from."""
_FEWEST = 20
"""Features below which a neighbourhood graph says less than two principal components."""
_EPOCHS = 200
_MARGIN = 0.001
"""Share of the features at either end of an axis that may be moved to the map's edge."""


def feature_map(
    w_dec: Float[Tensor, "d_sae d_out"],
    neighbours: Int[Tensor, "d_sae n_neighbours"],
    cosines: Float[Tensor, "d_sae n_neighbours"],
) -> Float[Tensor, "d_sae 2"]:
    """Places in the plane at which features with similar decoder directions lie together.

    UMAP (arXiv 1802.03426) on the nearest other directions of every feature and their cosines,
    descending, starting from the principal components of the directions, whose norms do not
    matter. The same input gives the same bits. Few features, or such as differ in nothing, are
    placed by their principal components alone. Coordinates are within 0..1, and the outermost
    thousandth at either end lies on the edge, so that no outlier presses the others together.
    """
    places = _principal_components(w_dec)
    if len(places) >= _FEWEST and neighbours.shape[1] > 1 and np.ptp(places, axis=0).min() > 0:
        places = _laid_out(places, neighbours, cosines)
    return torch.from_numpy(_scaled(places))


def _principal_components(w_dec: Tensor) -> np.ndarray:
    rows = torch.nn.functional.normalize(w_dec.detach().float().nan_to_num(), dim=1)
    centred = rows - rows.mean(0)
    # In float64 and by way of (d_out, d_out): exact, and the same on every call.
    covariance = (centred.t() @ centred).double().cpu()
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -2:].flip(1)
    places = np.zeros((len(rows), 2), dtype=np.float32)
    found = (centred @ axes.to(centred)).cpu().numpy()
    places[:, : found.shape[1]] = found
    # What remains of equal rows is rounding.
    places[:, np.ptp(places, axis=0) < 1e-5 if len(places) else True] = 0
    return places


def _laid_out(start: np.ndarray, neighbours: Tensor, cosines: Tensor) -> np.ndarray:
    with warnings.catch_warnings():
        # Without Tensorflow it says that one of its variants is missing.
        warnings.filterwarnings("ignore", category=ImportWarning, module="umap")
        import umap
        from umap.umap_ import compute_membership_strengths, smooth_knn_dist
    # Numba compiles these two for some five seconds in every process unless told to keep them.
    # The layout is quick to compile, and has `fastmath`: kept code may round differently.
    for function in (smooth_knn_dist, compute_membership_strengths):
        function.enable_caching()
    own = np.arange(len(start))[:, None]
    indices = np.concatenate([own, neighbours.cpu().numpy()], axis=1)
    distances = (1 - cosines.detach().float().cpu().nan_to_num()).clamp_min(0).numpy()
    distances = np.concatenate([np.zeros_like(distances[:, :1]), distances], axis=1)
    layout = umap.UMAP(
        n_neighbors=indices.shape[1],
        precomputed_knn=(indices, distances, None),
        # Below 4,096 points it would take neighbours of its own.
        force_approximation_algorithm=True,
        init=10 * start / np.abs(start).max(),
        n_epochs=_EPOCHS,
        random_state=0,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]", category=UserWarning)
        # It takes only the number of points from what it is given besides the neighbours.
        places: np.ndarray = layout.fit_transform(start)
    return places


def _scaled(places: np.ndarray) -> np.ndarray:
    if len(places) == 0:
        return places
    low, high = np.quantile(places, [_MARGIN, 1 - _MARGIN], axis=0)
    width = high - low
    inside = np.clip(places, low, high) - low
    scaled = np.where(width > 0, inside / np.where(width > 0, width, 1), 0.5)
    return scaled.astype(np.float32)
