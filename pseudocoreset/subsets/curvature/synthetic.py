"""Synthetic points for a likelihood of one linear predictor: one direction of the parameters each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.subsets.curvature.atoms import Atoms, Likelihood, Wanted
from pseudocoreset.subsets.curvature.density import Density
from pseudocoreset.subsets.curvature.judge import Judge
from pseudocoreset.subsets.curvature.mode import FullPosterior
from pseudocoreset.subsets.curvature.predictor import NotLinearError, Predictor, find_predictor

__all__ = ["SyntheticPoints", "synthetic_points"]

SAME = 1e-7
LEAST_EIGENVALUE = 1e-13  # of the curvature along a direction, over the largest
NUM_ROTATIONS = 2  # at random, of each arrangement
QUANTILES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)  # of the function values, where the points may lie
DISTANCES = (-3.0, -1.5, 1.5, 3.0)  # other values of f
NOT_FOUND = "no targets that the likelihood can have give the score and the curvature of all data"


class SyntheticPoints(NamedTuple):
    """A coreset, and of how many that match all data to second order it is the nearest at draws."""

    coreset: Pseudocoreset
    num_tried: int


class _Line(NamedTuple):
    """Coordinates z of the gradients J = basis @ z of a predictor; the last of z is one where there is an intercept."""

    basis: np.ndarray
    inverse: np.ndarray
    has_intercept: bool


class _Layout(NamedTuple):
    """Points z (m, r), their predictors (m,) over the offset, and the lengths c (m,) of z over the columns of A."""

    z: np.ndarray
    predictors: np.ndarray
    lengths: np.ndarray
    rotation: np.ndarray


def synthetic_points(
    density: Density, posterior: FullPosterior, judge: Judge, most: int | None, seed: int
) -> SyntheticPoints:
    """Points with the score and the curvature of all data, of those that were tried the nearest beyond second order.

    With H = L L' the curvature in the coordinates of the predictor and Q a rotation, the columns of A = L Q are the
    directions of the points, z_j = c_j A_j. The weight of a point is w_j = 1 / (kappa_j c_j^2), and its target solves
    s_j / kappa_j = c_j (A^-1 g)_j, with s and kappa score and curvature of the likelihood in the predictor, and g the
    score of all data. Where z has no intercept the predictor value of the points is free; otherwise c follows from the
    intercept, and the rotation is free. A likelihood with parameters beside the predictor has several targets a point.

    Raises:
        NotLinearError: if the likelihood has no linear predictor, or takes more than ``most`` points.
    """
    predictor = find_predictor(density, posterior)
    problem = _Problem.of(density, posterior, predictor)
    best: tuple[float, Pseudocoreset] | None = None
    sizes = []
    for layout in problem.layouts(np.random.default_rng(seed)):
        atoms = problem.likelihood.atoms(predictor.offset + layout.predictors, problem.wanted(layout))
        if atoms is None:
            continue
        coreset = problem.coreset(layout, atoms)
        sizes.append(coreset.size)
        if most is not None and coreset.size > most:
            continue
        far = judge.spread(coreset)
        if np.isfinite(far) and (best is None or far < best[0]):
            best = far, coreset
    if best is None:
        raise NotLinearError(f"it takes {min(sizes)} points, more than size={most}" if sizes else NOT_FOUND)
    return SyntheticPoints(best[1], len(sizes))


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is wanted, in coordinates of the predictor.

    Attributes:
        likelihood: of a target.
        line: coordinates of the gradients.
        scales: (d_f,) units of the linear parameters.
        factor: L (r, s), L L' = H.
        score: L^+ g (s,).
        mixed: L^+ times the curvature between linear and direct parameters (s, k).
        weight: L' theta (s,), whose product with z gives predictors.
        direct: score and curvature of the direct parameters.
        values: of f at some rows, over the offset.
    """

    likelihood: Likelihood
    line: _Line
    scales: np.ndarray
    factor: np.ndarray
    score: np.ndarray
    mixed: np.ndarray
    weight: np.ndarray
    direct: tuple[np.ndarray, np.ndarray]
    values: np.ndarray

    @classmethod
    def of(cls, density: Density, posterior: FullPosterior, predictor: Predictor) -> _Problem:
        of_all, linear, direct = posterior.likelihood, predictor.linear, predictor.direct
        scales = 1 / np.sqrt(np.diagonal(of_all.curvature + posterior.prior.curvature))
        curvature = scales[:, None] * of_all.curvature * scales
        score = scales * of_all.gradient
        line = _line(predictor, scales[linear])
        own, mixed = curvature[np.ix_(linear, linear)], curvature[np.ix_(linear, direct)]
        inner = line.inverse @ own @ line.inverse.T
        reached = [(line.basis @ inner @ line.basis.T, own)]
        reached += [(line.basis @ (line.inverse @ part), part) for part in (score[linear], mixed)]
        if not all(np.allclose(a, b, rtol=0, atol=SAME * (1 + np.max(np.abs(b), initial=0))) for a, b in reached):
            raise NotLinearError("the columns that can move do not reach all parameters")
        values, vectors = np.linalg.eigh(inner)
        if values[0] < -SAME * values[-1]:
            raise NotLinearError("the curvature of the log-likelihood is not positive along some direction")
        kept = values > LEAST_EIGENVALUE * values[-1]
        roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
        x, _ = density.rows(density.some_rows(5000))
        flat = x.reshape(len(x), -1)[:, predictor.columns]
        weight = predictor.slopes.T @ posterior.mode[linear]
        likelihood = Likelihood(density, predictor, posterior.mode, scales[direct])
        return cls(
            likelihood=likelihood,
            line=line,
            scales=scales[linear],
            factor=vectors * roots,
            score=(vectors / roots).T @ (line.inverse @ score[linear]),
            mixed=(vectors / roots).T @ (line.inverse @ mixed),
            weight=(vectors * roots).T @ (line.basis.T @ (posterior.mode[linear] / scales[linear])),
            direct=(score[direct], curvature[np.ix_(direct, direct)]),
            values=flat @ weight + predictor.constant @ posterior.mode[linear],
        )

    def wanted(self, layout: _Layout) -> Wanted:
        """What the points of a layout are to have."""
        turned, c = layout.rotation.T, layout.lengths
        mixed = (turned @ self.mixed) / c[:, None]
        return Wanted(1 / c**2, turned @ self.score / c, mixed, *self.direct)

    def layouts(self, rng: np.random.Generator) -> Iterator[_Layout]:
        """Arrangements to choose from."""
        yield from self._with_intercept(rng) if self.line.has_intercept else self._without(rng)

    def _without(self, rng: np.random.Generator) -> Iterator[_Layout]:
        """All points at one predictor value, which is free."""
        s, length = self.factor.shape[1], float(np.linalg.norm(self.weight))
        even = np.full(s, 1 / np.sqrt(s))
        if length < 1e-12:  # the predictor is zero wherever a point lies
            sizes = [np.sqrt(s) / np.linalg.norm(self.factor) * factor for factor in (0.5, 1.0, 2.0)]
        else:
            found = [*np.quantile(self.values, QUANTILES), *DISTANCES]
            sizes = [a * np.sqrt(s) / length for a in found if abs(a) > 1e-3 * (1 + np.std(self.values))]
        for c in sizes:
            for _ in range(NUM_ROTATIONS):
                rotation = _rotation([self.weight], [even], rng)
                directions = self.factor @ rotation
                slopes, scores = rotation.T @ self.weight, rotation.T @ self.score
                lengths = self.likelihood.aligned(np.full(s, c), slopes, scores)
                lengths = np.full(s, c) if lengths is None else lengths
                yield _Layout((directions * lengths).T, lengths * slopes, lengths, rotation)

    def _with_intercept(self, rng: np.random.Generator) -> Iterator[_Layout]:
        """Points whose last coordinate is one; predictors about the mean, spread in several ways."""
        last = self.factor[-1]
        s, length = len(last), float(np.linalg.norm(last))
        even, c = np.full(s, 1 / np.sqrt(s)), np.sqrt(s) / length
        across = self.weight - (self.weight @ last) / length**2 * last
        for spread in _spreads(s, rng):
            for _ in range(NUM_ROTATIONS):
                rotation = _rotation([last, across], [even, spread], rng)
                directions = self.factor @ rotation
                yield _Layout((directions * c).T, c * (rotation.T @ self.weight), np.full(s, c), rotation)

    def coreset(self, layout: _Layout, atoms: Atoms) -> Pseudocoreset:
        """The points as inputs, targets and weights."""
        density, predictor = self.likelihood.density, self.likelihood.predictor
        gradients = (layout.z @ self.line.basis.T) / self.scales
        data = density.data
        inputs = predictor.inputs(gradients)[atoms.points].reshape(-1, *density.model.datum_structs[0].shape)
        is_soft = self.likelihood.has_classes and not len(predictor.direct)
        targets = atoms.targets
        if is_soft:
            targets = np.stack([1 - targets, targets], axis=1)
        elif self.likelihood.has_classes:
            targets = targets.astype(np.int32)
        return Pseudocoreset(
            inputs=inputs,
            targets=targets,
            weights=atoms.weights,
            preprocessing=data.preprocessing,
            layout=data.train.layout,
            num_data=data.train.num_data,
            class_names=data.class_names,
            holds_probabilities=is_soft or None,
        )


def _line(predictor: Predictor, scales: np.ndarray) -> _Line:
    """Coordinates of the gradients that inputs can have, in units of the parameters."""
    slopes = scales[:, None] * predictor.slopes * predictor.scales
    constant = scales * predictor.constant
    vectors, values, _ = np.linalg.svd(slopes, full_matrices=False)
    basis = vectors[:, values > 1e-11 * values[0]]
    beyond = constant - basis @ (basis.T @ constant)
    if np.linalg.norm(beyond) <= 1e-9 * (np.linalg.norm(constant) + values[0]):
        return _Line(basis, basis.T, False)
    square = float(beyond @ beyond)
    return _Line(np.c_[basis, beyond], np.r_[basis.T, beyond[None] / square], True)


def _spreads(s: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Vectors (s,) that sum to zero: how the predictors of points lie about their mean."""
    if s < 2:
        return [np.zeros(s)]
    alternating = np.where(np.arange(s) % 2, 1.0, -1.0)
    normal = np.sort(rng.normal(size=s))
    exponential = np.sort(rng.exponential(size=s))
    uniform = np.linspace(-1, 1, s)
    return [sign * (shape - shape.mean()) for shape in (alternating, uniform, normal, exponential) for sign in (1, -1)]


def _rotation(from_: list[np.ndarray], to: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A random rotation Q whose transpose takes the directions of ``from_``, orthogonal, to those of ``to``."""
    size = len(to[0])
    pairs = [
        (a / np.linalg.norm(a), b / np.linalg.norm(b))
        for a, b in zip(from_, to, strict=True)
        if np.linalg.norm(a) > 1e-12 and np.linalg.norm(b) > 1e-12
    ]
    first, second = (_completed([pair[i] for pair in pairs], size, rng) for i in (0, 1))
    return first @ second.T


def _completed(columns: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix that begins with these columns, random beyond."""
    filled = np.c_[np.stack(columns, axis=1) if columns else np.zeros((size, 0)), rng.normal(size=(size, size))]
    q, r = np.linalg.qr(filled[:, :size])
    return np.asarray(q * np.sign(np.diagonal(r)))
