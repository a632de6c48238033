"""The precision matrix of latent scores: a graph's weighted Laplacian plus the prior's diagonal. Solves, variances, draws.

Up to `DENSE_LIMIT` items it is factorised (Cholesky, exact). Beyond, where a factor of a random graph is all but dense,
it stays sparse: conjugate gradients, which the prior keeps short, and variances by the simple Rao-Blackwellised Monte
Carlo estimator of Siden et al. (2018), "Efficient covariance approximations for large sparse precision matrices".
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.random import Generator
from scipy import sparse
from scipy.linalg import cholesky
from scipy.linalg.lapack import dpotri, dpotrs, dtrtrs

from rayrlhf.preferences.bradley_terry_likelihood import Floats, Ints, summed

DENSE_LIMIT = 2000
VARIANCE_DRAWS = 256
_SEED = 0  # of the draws that variances are estimated from: the same comparisons give the same intervals
_BLOCK = 64  # right-hand sides solved together
_TOLERANCE = 1e-10  # of the residual's norm over that of the right-hand side
_MAX_ITERATIONS = 10_000  # of conjugate gradients; a wide prior (deviation 100) on long chains needs some hundreds


class Precision(Protocol):
    """A positive definite matrix Q [n, n] and what is asked of it."""

    def solve(self, right: Floats) -> Floats:
        """Q^-1 right, for right [n, k]."""

    def variances(self) -> Floats:
        """[n] diagonal of Q^-1."""

    def difference_variances(self, first: Ints, second: Ints) -> Floats:
        """[m] of x_first - x_second under N(0, Q^-1); x_n, one past the last, is 0."""

    def draws(self, count: int, rng: Generator) -> Floats:
        """[count, n] from N(0, Q^-1)."""


def make_precision(first: Ints, second: Ints, weight: Floats, diagonal: Floats) -> Precision:
    """Q = diag(diagonal) + sum_e weight_e (u_first - u_second)(u_first - u_second)', u_i being unit vectors.

    first, second: [m] indices of items; index n, one past the last, is an item whose score is fixed, of which only
    the other's diagonal remains. weight: [m] >= 0. diagonal: [n] > 0.
    """
    if len(diagonal) <= DENSE_LIMIT:
        return DensePrecision(first, second, weight, diagonal)
    return SparsePrecision(first, second, weight, diagonal)


class DensePrecision:
    """Exact, in n^3/3 operations."""

    def __init__(self, first: Ints, second: Ints, weight: Floats, diagonal: Floats) -> None:
        n = len(diagonal)
        side = n + 1
        pairs = summed(first * side + second, weight, side * side).reshape(side, side)
        pairs += pairs.T
        matrix = -pairs[:n, :n]
        matrix.flat[:: n + 1] += pairs.sum(1)[:n] + diagonal
        self._factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)

    def solve(self, right: Floats) -> Floats:
        return np.asarray(dpotrs(self._factor, right, lower=1)[0])

    def variances(self) -> Floats:
        return np.diagonal(dpotri(self._factor, lower=1)[0]).copy()

    def difference_variances(self, first: Ints, second: Ints) -> Floats:
        lower = dpotri(self._factor, lower=1)[0]
        covariance = np.zeros((len(lower) + 1, len(lower) + 1))
        covariance[:-1, :-1] = np.tril(lower) + np.tril(lower, -1).T
        own = np.diagonal(covariance)
        return np.asarray(own[first] + own[second] - 2 * covariance[first, second])

    def draws(self, count: int, rng: Generator) -> Floats:
        noise = rng.standard_normal((len(self._factor), count))
        return np.asarray(dtrtrs(self._factor, noise, lower=1, trans=1)[0].T)  # L'x = z has covariance (LL')^-1


class SparsePrecision:
    """Memory and time grow with the comparisons, not with the square of the items."""

    def __init__(self, first: Ints, second: Ints, weight: Floats, diagonal: Floats) -> None:
        n = len(diagonal)
        degree = summed(first, weight, n + 1) + summed(second, weight, n + 1)
        self._diagonal = degree[:n] + diagonal
        free = (first < n) & (second < n)
        edges = sparse.coo_array((-weight[free], (first[free], second[free])), shape=(n, n)).tocsr()
        self._edges = (edges + edges.T).tocsr()  # off the diagonal of Q
        self._first, self._second, self._weight, self._prior = first, second, weight, diagonal

    def solve(self, right: Floats) -> Floats:
        """Conjugate gradients with the diagonal as preconditioner, on all columns at once."""
        solution = np.zeros_like(right)
        residual = right.copy()
        inverse = 1 / self._diagonal[:, None]
        direction = inverse * residual
        power = np.sum(residual * direction, axis=0)
        target = _TOLERANCE * np.linalg.norm(right, axis=0)
        for _ in range(_MAX_ITERATIONS):
            if np.all(np.linalg.norm(residual, axis=0) <= target):
                return solution
            image = self._times(direction)
            active = power > 0  # a column of zeros is solved already
            step = np.divide(power, np.sum(direction * image, axis=0), out=np.zeros_like(power), where=active)
            solution += step * direction
            residual -= step * image
            scaled = inverse * residual
            before, power = power, np.sum(residual * scaled, axis=0)
            direction = scaled + np.divide(power, before, out=np.zeros_like(power), where=active) * direction
        raise ArithmeticError(f"conjugate gradients did not converge in {_MAX_ITERATIONS} iterations")

    def variances(self) -> Floats:
        """Var(x_i) = 1 / Q_ii + Var(E[x_i | the others]): the first part is exact, the mostly smaller second is estimated.

        The standard error of a variance is below sqrt(2 / VARIANCE_DRAWS) = 9 % of the second part alone: on a random
        graph of twenty comparisons an item some 0.2 % of a standard deviation (`tests/benchmarks/ranking_speed.py`).
        """
        rng = np.random.default_rng(_SEED)
        second_part = np.zeros(len(self._diagonal))
        for _ in range(VARIANCE_DRAWS // _BLOCK):
            conditional_means = (self._edges @ self.draws(_BLOCK, rng).T) / self._diagonal[:, None]
            second_part += np.sum(conditional_means**2, axis=1)
        return np.asarray(1 / self._diagonal + second_part / VARIANCE_DRAWS)

    def difference_variances(self, first: Ints, second: Ints) -> Floats:
        """From `_BLOCK` draws: each variance is rough (18 %), and right on the average over many pairs."""
        drawn = self.draws(_BLOCK, np.random.default_rng(_SEED)).T
        drawn = np.vstack([drawn, np.zeros(_BLOCK)])
        return np.asarray(np.mean((drawn[first] - drawn[second]) ** 2, axis=1))

    def draws(self, count: int, rng: Generator) -> Floats:
        """Perturbation (Papandreou and Yuille 2010): Q^-1 b with b ~ N(0, Q), made of noise on each edge and item."""
        n = len(self._diagonal)
        noise = rng.standard_normal((n, count)) * np.sqrt(self._prior)[:, None]
        on_edges = rng.standard_normal((len(self._weight), count)) * np.sqrt(self._weight)[:, None]
        rows = np.arange(len(self._weight))
        ones = np.ones(len(rows))
        incidence = sparse.coo_array((ones, (self._first, rows)), shape=(n + 1, len(rows))).tocsr()
        incidence -= sparse.coo_array((ones, (self._second, rows)), shape=(n + 1, len(rows))).tocsr()
        return self.solve(noise + (incidence @ on_edges)[:n]).T

    def _times(self, columns: Floats) -> Floats:
        return np.asarray(self._diagonal[:, None] * columns + self._edges @ columns)


class BorderedPrecision:
    """[[Q, B], [B', C]]: n scores and q parameters that all of them share. Solved by C's Schur complement."""

    def __init__(self, core: Precision, border: Floats, corner: Floats) -> None:
        """core: Q. border: B [n, q]. corner: C [q, q]."""
        self.core, self.border, self.corner = core, border, corner

    @cached_property
    def solved_border(self) -> Floats:
        """[n, q] Q^-1 B: minus how the scores of highest density move with the shared parameters."""
        return self.core.solve(self.border) if self.border.shape[1] else self.border

    @cached_property
    def corner_covariance(self) -> Floats:
        """[q, q] of the shared parameters: the inverse of C's Schur complement."""
        return np.asarray(np.linalg.inv(self.corner - self.border.T @ self.solved_border))

    def variances(self) -> Floats:
        """[n] of the scores."""
        through = self.solved_border
        return self.core.variances() + np.sum((through @ self.corner_covariance) * through, axis=1)

    def draws(self, count: int, rng: Generator) -> Floats:
        """[count, n] of the scores, around 0."""
        through = self.solved_border
        shared = rng.standard_normal((count, through.shape[1])) @ np.linalg.cholesky(self.corner_covariance).T
        return self.core.draws(count, rng) - shared @ through.T
