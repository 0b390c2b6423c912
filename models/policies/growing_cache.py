"""Key-value cache whose rows join and leave: every live row ends in the last column."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    import torch

AHEAD = 32  # columns that are made at once


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (rows, heads, columns, size), written in place.

    The library's own layer copies all it holds at every step. Here `keys` and `values` are the live part of something
    larger: the first rows, and as many columns as the longest of them takes. Left of a shorter row stands what must be
    masked; it is finite, since a masked NaN is one still.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.is_initialized = True
        self._rows, self._live, self._width, self._end = rows, 0, 0, 0
        self._kept: list[Any] = []

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *_: object, **__: object
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Write one more column, and return keys and values with it."""
        if self._end == self._kept[0].shape[2]:
            self._make(self._width + 1)
        self._end, self._width = self._end + 1, self._width + 1
        for kept, new in zip(self._kept, (key_states, value_states), strict=True):
            kept[: self._live, :, self._end - 1 : self._end] = new
        self._show()
        return self.keys, self.values

    def join(self, keys: "torch.Tensor", values: "torch.Tensor") -> None:
        """Add rows below the live ones, of at most as many columns as are given."""
        rows, width = len(keys), max(self._width, keys.shape[2])
        if not self._kept:
            shapes = ((self._rows, new.shape[1], width + AHEAD, new.shape[3]) for new in (keys, values))
            self._kept = [new.new_zeros(shape) for new, shape in zip((keys, values), shapes, strict=True)]
            self._end = width
        elif width > self._end:
            self._make(width)
        self._width = width
        for kept, new in zip(self._kept, (keys, values), strict=True):
            kept[self._live : self._live + rows, :, self._end - new.shape[2] : self._end] = new
        self._live += rows
        self._show()

    def leave(self, *, holes: "torch.Tensor", movers: "torch.Tensor", live: int, width: int) -> None:
        """Keep the first `live` rows and the last `width` columns, once the rows `movers` stand in the place of `holes`."""
        if len(holes):
            for shown in (self.keys, self.values):
                shown[holes] = shown[movers]
        self._live, self._width = live, width
        self._show()

    def _make(self, width: int) -> None:
        """Move what is live to where there is room for `width` columns and more."""
        for place, old in enumerate(self._kept):
            new = old.new_zeros((*old.shape[:2], width + AHEAD, old.shape[3]))
            new[: self._live, :, width - self._width : width] = old[
                : self._live, :, self._end - self._width : self._end
            ]
            self._kept[place] = new
        self._end = width

    def _show(self) -> None:
        begin = self._end - self._width
        self.keys, self.values = (kept[: self._live, :, begin : self._end] for kept in self._kept)


class GrowingCache(Cache):  # type: ignore[misc]
    """The layers of a model together."""

    def __init__(self, layers: int, rows: int) -> None:
        super().__init__(layers=[GrowingLayer(rows) for _ in range(layers)])

    def join(self, read: Sequence[DynamicLayer], rows: Sequence[int], width: int) -> None:
        """Add rows of layers that were read elsewhere, left-padded: their last `width` columns, which may be none."""
        for layer, other in zip(self.layers, read, strict=True):
            begin = other.keys.shape[2] - width
            layer.join(other.keys[rows, :, begin:], other.values[rows, :, begin:])

    def leave(self, **places: object) -> None:
        """Let rows go from every layer."""
        for layer in self.layers:
            layer.leave(**places)


def keeps_all(cache: object) -> bool:
    """Whether every layer of a model's own cache keeps all tokens: no sliding window, no state."""
    return cache is not None and all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None]))
