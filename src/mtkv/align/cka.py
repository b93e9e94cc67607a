"""How similar two layers are: linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, eq. 5)."""

import numpy as np
from jaxtyping import Float


def linear_cka(x: Float[np.ndarray, "tokens width_x"], y: Float[np.ndarray, "tokens width_y"]) -> float:
    """‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) of the centred features, in [0, 1]; 0 where one side is constant.

    Unchanged by rotations and by one scale factor of either side.
    """
    return float(cka_similarity(np.asarray(x)[:, None], np.asarray(y)[:, None])[0, 0])


def cka_similarity(
    student: Float[np.ndarray, "tokens student_layers width_s"],
    teacher: Float[np.ndarray, "tokens teacher_layers width_t"],
) -> Float[np.ndarray, "student_layers teacher_layers"]:
    """Linear CKA of every student layer with every teacher layer on the same tokens (K and V flattened into one width).

    Costs tokens · (L_s·width_s) · (L_t·width_t) multiplications: a few thousand tokens are plenty.
    """
    mine, theirs = _centred(student), _centred(teacher)
    tokens, layers, width = theirs.shape
    flat = theirs.reshape(tokens, layers * width)
    cross = [np.square(mine[:, i].T @ flat).reshape(-1, layers, width).sum((0, 2)) for i in range(mine.shape[1])]
    norms = np.outer(_gram_norms(mine), _gram_norms(theirs))
    return np.divide(np.stack(cross), norms, out=np.zeros_like(norms), where=norms > 0)


def _centred(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(axis=0)


def _gram_norms(x: Float[np.ndarray, "tokens layers width"]) -> Float[np.ndarray, " layers"]:
    return np.array([np.linalg.norm(x[:, layer].T @ x[:, layer]) for layer in range(x.shape[1])])
