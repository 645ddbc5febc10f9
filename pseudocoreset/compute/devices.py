"""``Devices``: where work runs and what it may take at once.

Two kinds of work are shared. A *stack* (experts, chains, draws, classes) has items that have nothing to do with one
another: each device goes through its part as a single one goes through the whole, by ``jax.shard_map``, and no device
waits for another in between. *Rows* (data) make sums, or results of each: they pass in chunks, and along the axis of
the mesh that is called ``"data"`` devices may share them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pseudocoreset.compute import meshes
from pseudocoreset.compute.backends import largest_array, on_cpu
from pseudocoreset.compute.chunks import in_chunks, rows_at_once
from pseudocoreset.compute.limits import Limits, limits
from pseudocoreset.rows import Rows

if TYPE_CHECKING:
    from pseudocoreset.models import Model

__all__ = ["Devices"]


@dataclass(frozen=True)
class Devices:
    """The devices of a mesh, or the default one: a static value, on which compiled code depends.

    What a function given to ``map`` or ``sum`` computes with, it computes with ``within``.

    Attributes:
        mesh: None for the default device.
        rows: what the axis ``"data"`` of the mesh does. ``"whole"``: it shares stacks, like the others. ``"shared"``:
            the devices along it share the rows that ``sum_rows`` and ``map_rows`` are given, which are on all of them.
            ``"split"``: each has its part of the rows (``place``), and ``sum_rows`` gives the sums of all.
        at_once: items of a stack that a device takes together: a number, ``"all"``, or ``"busy"``: on a CPU one, on
            accelerators as many networks as keep them busy.
        chunk: rows that pass together; None for all.
        limits: of memory.
    """

    mesh: Mesh | None = None
    rows: Literal["whole", "shared", "split"] = "whole"
    at_once: int | Literal["busy", "all"] = "busy"
    chunk: int | None = None
    limits: Limits = field(default_factory=limits)

    @classmethod
    def of(cls, mesh: Any) -> Devices:
        """Those of a ``mesh`` argument.

        Raises:
            TypeError: for anything but a mesh of devices or None.
        """
        return cls(meshes.checked_mesh(mesh))

    @property
    def within(self) -> Devices:
        """One of them, at its part of a stack."""
        return dataclasses.replace(self, mesh=None)

    def taking(self, at_once: int | Literal["busy", "all"]) -> Devices:
        """The same, with so many items of a stack together."""
        return dataclasses.replace(self, at_once=at_once)

    def for_draws_of(self, model: Model) -> Devices:
        """The same, with all parameter sets of a model together; with networks by the way that suits the backend."""
        return self.taking("busy" if model.is_network else "all")

    def in_chunks_of(self, chunk: int | None) -> Devices:
        """The same, with so many rows together."""
        return dataclasses.replace(self, chunk=chunk)

    def for_rows_of(self, model: Model) -> Devices:
        """The same, with as many data together as suit a model: all of them where they depend on one another."""
        return self.in_chunks_of(rows_at_once(model, self.limits) if model.is_separable else None)

    def sharing_rows(self, model: Model) -> Devices:
        """The same, sharing rows that are on all of them, where there is a data axis and the model allows it."""
        return self._with_rows("shared") if model.is_separable else self

    def splitting_rows(self) -> Devices:
        """The same, each having its part of the rows, where there is a data axis."""
        return self._with_rows("split")

    def _with_rows(self, rows: Literal["shared", "split"]) -> Devices:
        has_axis = self.mesh is not None and meshes.DATA_AXIS in self.mesh.axis_names
        return dataclasses.replace(self, rows=rows) if has_axis else self

    def map(self, fn: Callable[..., Any], stack: Any, *shared: Any) -> Any:
        """``fn(item, *shared)`` of every item of a stack, the results stacked.

        Args:
            fn: function of one item and the shared arguments that closes over no traced array where there is a mesh;
                any pytree out.
            stack: pytree of arrays with the same leading axis. Where the devices do not divide it, it is filled up with
                its last item, and the results of that are dropped.
            *shared: pytrees, whole on every device; ``Rows`` are split where rows are.
        """

        def of_part(part: Any, *whole: Any) -> Any:
            def one(item: Any) -> Any:
                return fn(item, *whole)

            size, at_once = _length(part), self._at_once(one, part)
            if at_once == 1:
                return jax.lax.map(one, part)
            return jax.vmap(one)(part) if at_once >= size else jax.lax.map(one, part, batch_size=at_once)

        return self._spread(of_part, stack, *shared)

    def sum(self, fn: Callable[..., Any], stack: Any, *shared: Any) -> Any:
        """The sum of ``fn(item, *shared)`` over a stack, in the memory of one item unless ``at_once`` is ``"all"``.

        Each device adds up its part.
        """
        filled = stack, np.ones(_length(stack), bool)
        if self.mesh is not None:
            filled = meshes.filled_up(stack, self.mesh, self._stack_axes)

        def of_part(part: Any, *whole: Any) -> Any:
            def value(item: tuple[Any, jax.Array]) -> Any:
                return jax.tree.map(lambda leaf: jnp.where(item[1], leaf, 0), fn(item[0], *whole))

            if self.at_once == "all":
                return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, keepdims=True), jax.vmap(value)(part))
            shapes = jax.eval_shape(value, jax.tree.map(lambda leaf: leaf[0], part))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            total, _ = jax.lax.scan(lambda total, item: (jax.tree.map(jnp.add, total, value(item)), None), zeros, part)
            return jax.tree.map(lambda leaf: leaf[None], total)

        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), self._spread(of_part, filled, *shared))

    def sum_rows(self, fn: Callable[..., Any], rows: Rows, *beside: Any, has_aux: bool = False) -> Any:
        """``fn(rows, *beside)``, sums over rows, chunk by chunk, added up over the devices in one exchange.

        Args:
            fn: ``(rows, *beside) -> sums``, a pytree of arrays each a sum of one term a row times its weight; with
                ``has_aux`` ``(sums, results)``, and a pytree of arrays with a leading axis over the rows. Called on
                chunks, whose rows have weight zero where they are there only to fill them up.
            rows: data and weights.
            *beside: other arrays with a leading axis over the rows.
            has_aux: whether ``fn`` has results of each row, too; they stay where their rows are (``gather``).
        """
        n = len(rows.weights)
        if self._shares:
            (rows, *beside), is_row = meshes.own_rows((rows, *beside))
            rows = rows._replace(weights=jnp.where(is_row, rows.weights, 0.0))

        def of_chunk(some: tuple[Any, ...], is_new: jax.Array) -> tuple[Any, Any]:
            chunk, *others = some
            found = fn(chunk._replace(weights=jnp.where(is_new, chunk.weights, 0)), *others)
            return found if has_aux else (found, ())

        sums, results = in_chunks(of_chunk, (rows, *beside), self.chunk or n)
        sums = meshes.total(sums) if self._has_part else sums
        return (sums, results) if has_aux else sums

    def map_rows(self, fn: Callable[[Any], Any], rows: Any) -> Any:
        """``fn(rows)``, results of each row, chunk by chunk; they stay where their rows are (``gather``)."""
        n = _length(rows)
        if self._shares:
            rows, _ = meshes.own_rows(rows)
        return in_chunks(lambda some, _: ((), fn(some)), rows, self.chunk or n)[1]

    def gather(self, results: Any, n: int) -> Any:
        """Results of all n rows, on every device, out of those that each has of its own."""
        return meshes.all_rows(results, n) if self._has_part else results

    def replicate(self, tree: Any) -> Any:
        """Arrays whole on every device."""
        return meshes.replicated(tree, self.mesh)

    def lay_out(self, stack: Any) -> Any:
        """A stack where ``map`` leaves its results, so that what takes it is compiled once."""
        return stack if self.mesh is None else meshes.laid_out(stack, self.mesh, self._stack_axes)

    def place(self, rows: Rows) -> Rows:
        """Rows of the host where ``map`` takes them from."""
        return self.replicate(rows) if self.mesh is None or self.rows != "split" else meshes.split(rows, self.mesh)

    @property
    def _has_part(self) -> bool:
        """Whether this is one of several devices that share rows."""
        return self.mesh is None and self.rows != "whole"

    @property
    def _shares(self) -> bool:
        """Whether it finds its part of them itself."""
        return self._has_part and self.rows == "shared"

    @property
    def _stack_axes(self) -> tuple[Any, ...]:
        assert self.mesh is not None
        return tuple(name for name in self.mesh.axis_names if self.rows == "whole" or name != meshes.DATA_AXIS)

    def _at_once(self, one: Callable[[Any], Any], part: Any) -> int:
        """Items of a part that go together; the last round may have fewer."""
        size = _length(part)
        if self.at_once == "all":
            return max(2, size)  # at once, even if it is one
        if self.at_once != "busy":
            return self.at_once
        most = 1 if on_cpu() else self.limits.busy_bytes // largest_array(one, part)
        # An axis of one item costs more than a loop of one turn.
        return 1 if most <= 1 or size == 1 else math.ceil(size / math.ceil(size / most))

    def _spread(self, of_part: Callable[..., Any], stack: Any, *shared: Any) -> Any:
        """``of_part(part, *shared)`` on every device for its part of a stack, the results put together along it."""
        if self.mesh is None:
            return of_part(stack, *shared)
        size, axes = _length(stack), self._stack_axes
        filled, is_item = meshes.filled_up(stack, self.mesh, axes)
        of_shared = [P(meshes.DATA_AXIS) if self.rows == "split" and isinstance(one, Rows) else P() for one in shared]
        mapped = jax.shard_map(
            of_part, mesh=self.mesh, in_specs=(P(axes), *of_shared), out_specs=P(axes), check_vma=False
        )(filled, *shared)
        return mapped if len(is_item) == size else jax.tree.map(lambda leaf: leaf[:size], mapped)


def _length(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]
