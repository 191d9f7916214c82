"""Shape, order, construction, indexing and reductions, against constant folding, numpy or torch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tests.coreml.programs import Case, booleans, floats, integers

X = floats(2, 3, 4)
IMAGE = floats(2, 8, 4, 6)
INTS = integers(2, 3, 4, low=-5, high=6)


def _one(op: str, x: np.ndarray = X, note: str = "", target: str = "iOS15", want=None, **arguments: object) -> Case:
    return Case(
        op=op,
        note=note,
        inputs=(x,),
        target=target,
        want=want,
        build=lambda mb, x: getattr(mb, op)(x=x, **arguments),
    )


def _depth_to_space(x: np.ndarray, b: int) -> np.ndarray:
    n, c, h, w = x.shape
    out = np.zeros((n, c // (b * b), h * b, w * b), x.dtype)
    for i in range(b):
        for j in range(b):
            first = (i * b + j) * (c // (b * b))
            out[:, :, i::b, j::b] = x[:, first : first + c // (b * b)]
    return out


def _space_to_depth(x: np.ndarray, b: int) -> np.ndarray:
    return np.concatenate([x[:, :, i::b, j::b] for i in range(b) for j in range(b)], axis=1)


def _space_to_batch(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 4)))
    return np.concatenate([padded[:, :, i::2, j::3] for i in range(2) for j in range(3)])


def _batch_to_space(x: np.ndarray) -> np.ndarray:
    n = x.shape[0] // 4
    out = np.zeros((n, x.shape[1], x.shape[2] * 2, x.shape[3] * 2), x.dtype)
    for i in range(2):
        for j in range(2):
            out[:, :, i::2, j::2] = x[(i * 2 + j) * n : (i * 2 + j + 1) * n]
    return out[:, :, 1:, : out.shape[3] - 2]


def _reverse_sequence(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    for i, length in enumerate((1, 3, 4)):
        out[:, i, :length] = x[:, i, :length][:, ::-1]
    return out


def _scatter(mode: str, axis: int):
    def want(data: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
        out = np.moveaxis(data.copy(), axis, 0)
        for place, update in zip(indices, np.moveaxis(updates, axis, 0), strict=True):
            out[place] = _MODES[mode](out[place], update)
        return np.moveaxis(out, 0, axis)

    return want


_MODES = {
    "update": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": np.maximum,
    "min": np.minimum,
}


def _scatter_along(mode: str):
    def want(data: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
        out = data.copy()
        for i, k, j in np.ndindex(indices.shape):
            place = (i, indices[i, k, j], j)
            out[place] = _MODES[mode](out[place], updates[i, k, j])
        return out

    return want


def _scatter_nd(mode: str):
    def want(data: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
        out = data.copy()
        for i in range(len(indices)):
            out[tuple(indices[i])] = _MODES[mode](out[tuple(indices[i])], updates[i])
        return out

    return want


SHAPES = [
    _one("reshape", shape=[4, 6]),
    _one("reshape", note="rest", shape=[3, -1]),
    _one("reshape", note="kept", shape=[0, -1, 2], want=lambda x: x.reshape(2, -1, 2)),
    _one(
        "reshape",
        floats(2, 50),
        "kept from the right",
        "iOS17",
        want=lambda x: x.reshape(1, 1, 2, 50),
        shape=[1, 0, -1, 0],
    ),
    Case(
        op="reshape_like",
        target="iOS16",
        inputs=(floats(5, 12), floats(2, 3, 4), floats(6, 5, 2)),
        build=lambda mb, x, a, b: mb.reshape_like(
            x=x, ref_tensors=(a, b), begins=(0, 1), ends=(2, 0), end_masks=(False, True)
        ),
        want=lambda x, a, b: x.reshape(2, 3, 5, 2),
    ),
    _one("transpose", perm=[2, 0, 1]),
    _one("transpose", note="negative", perm=[-1, 0, -2]),
    _one("expand_dims", axes=[0, 2]),
    _one("expand_dims", note="negative", axes=[-1, 1]),
    _one("squeeze", floats(1, 3, 1, 4), axes=[0]),
    _one("squeeze", floats(1, 3, 1, 4), "all", want=lambda x: x.squeeze()),
    _one("squeeze", floats(2, 3, 1), "not of size one", want=lambda x: x.squeeze(2), axes=[0, 2]),
    _one("flatten2d", axis=2),
    _one("flatten2d", note="negative", axis=-1),
    Case(
        op="concat",
        inputs=(X, floats(2, 5, 4, seed=1)),
        build=lambda mb, a, b: mb.concat(values=(a, b), axis=-2),
        want=lambda a, b: np.concatenate([a, b], 1),
    ),
    Case(
        op="concat",
        note="interleaved",
        inputs=(X, floats(2, 3, 4, seed=1)),
        build=lambda mb, a, b: mb.concat(values=(a, b), axis=1, interleave=True),
        want=lambda a, b: np.stack([a, b], 2).reshape(2, 6, 4),
    ),
    Case(
        op="stack",
        inputs=(X, floats(2, 3, 4, seed=1)),
        build=lambda mb, a, b: mb.stack(values=(a, b), axis=-1),
        want=lambda a, b: np.stack([a, b], -1),
    ),
    _one("split", axis=2, num_splits=2),
    _one("split", note="sizes", axis=-2, split_sizes=[1, 2]),
    _one("tile", reps=[1, 2, 3]),
    _one("reverse", axes=[0, -1]),
    _one("reverse", note="all"),
    _one("reverse_sequence", floats(2, 3, 4), want=_reverse_sequence, lengths=[1, 3, 4], seq_axis=2, batch_axis=1),
    _one("pad", pad=[1, 2, 0, 3]),
    _one("pad", note="constant", pad=[1, 0, 2, 1, 0, 1], constant_val=np.float32(0.7)),
    _one("pad", note="reflect", pad=[2, 1, 3, 2], mode="reflect"),
    _one("pad", note="reflect in front", pad=[1, 1, 0, 0, 1, 3], mode="reflect"),
    _one("pad", note="replicate", pad=[2, 3, 1, 2], mode="replicate"),
    _one("depth_to_space", IMAGE, want=lambda x: _depth_to_space(x, 2), block_size=2),
    _one("space_to_depth", IMAGE, want=lambda x: _space_to_depth(x, 2), block_size=2),
    _one("pixel_shuffle", IMAGE, want=lambda x: F.pixel_shuffle(torch.from_numpy(x), 2), upscale_factor=2),
    _one(
        "pixel_unshuffle",
        IMAGE,
        target="iOS16",
        want=lambda x: F.pixel_unshuffle(torch.from_numpy(x), 2),
        downscale_factor=np.uint32(2),
    ),
    _one("space_to_batch", IMAGE, want=_space_to_batch, block_shape=[2, 3], paddings=[[1, 1], [2, 4]]),
    _one("batch_to_space", floats(8, 2, 3, 4), want=_batch_to_space, block_shape=[2, 2], crops=[[1, 0], [0, 2]]),
    _one(
        "sliding_windows",
        floats(2, 7, 3),
        want=lambda x: np.stack([x[:, i : i + 3] for i in (0, 2, 4)], 1),
        axis=1,
        size=3,
        stride=2,
    ),
    _one("band_part", floats(2, 5, 4), lower=1, upper=2),
    _one("band_part", floats(2, 5, 4), "open below", lower=-1, upper=0),
    _one("band_part", floats(4, 6), "open above", lower=0, upper=-1),
    _one("cumsum", axis=1),
    _one("cumsum", note="reverse", axis=-1, reverse=True),
    _one(
        "cumsum",
        note="exclusive",
        want=lambda x: np.concatenate([np.zeros((2, 1, 4)), x.cumsum(1)[:, :-1]], 1),
        axis=1,
        exclusive=True,
    ),
    _one("cumsum", INTS, "integers", axis=0),
    _one("shape"),
    Case(
        op="fill",
        inputs=(np.array([2, 3], np.int32),),
        build=lambda mb, shape: mb.fill(shape=shape, value=np.float32(0.5)),
    ),
    Case(
        op="fill",
        note="integers",
        inputs=(np.array([2, 3], np.int32),),
        build=lambda mb, shape: mb.fill(shape=shape, value=np.int32(7)),
    ),
    Case(
        op="fill_like",
        target="iOS16",
        inputs=(X,),
        build=lambda mb, x: mb.fill_like(ref_tensor=x, value=np.int32(3)),
    ),
    Case(
        op="range_1d",
        inputs=(np.array(9, np.int32).reshape(1),),
        build=lambda mb, end: mb.range_1d(start=1, end=mb.squeeze(x=end), step=3),
        want=lambda end: np.arange(1, 9, 3),
    ),
    Case(
        op="one_hot",
        inputs=(integers(2, 3, high=4),),
        build=lambda mb, x: mb.one_hot(indices=x, one_hot_vector_size=4, axis=1, on_value=2.0, off_value=-1.0),
        want=lambda x: np.moveaxis(np.where(x[..., None] == np.arange(4), 2.0, -1.0), -1, 1),
    ),
    _one("argsort", axis=1),
    _one("argsort", note="ascending", axis=-1, ascending=True),
    _one("topk", k=2, axis=1),
    _one("topk", note="ascending", k=3, axis=-1, ascending=True),
    _one("topk", note="values alone", target="iOS16", k=2, axis=-1, return_indices=False, sort=True),
    _one("topk", note="short indices", target="iOS17", k=2, axis=-1, output_indices_dtype="uint16"),
    _one("non_zero", booleans(3, 4), want=lambda x: np.argwhere(x)),
]

_SLICES = {
    "plain": {"begin": [0, 1, 0], "end": [2, 3, 3]},
    "stride": {"begin": [0, 0, 1], "end": [2, 3, 4], "stride": [1, 2, 2]},
    "negative": {"begin": [-2, -3, -3], "end": [2, -1, -1]},
    "backwards": {"begin": [1, 2, 3], "end": [0, 0, 0], "stride": [-1, -1, -2], "end_mask": [True, False, True]},
    "masks": {"begin": [1, 1, 1], "end": [1, 1, 1], "begin_mask": [True, False, True], "end_mask": [False, True, True]},
    "squeezed": {"begin": [0, 1, -1], "end": [2, 0, 0], "squeeze_mask": [False, True, True]},
    "beyond": {"begin": [0, 0, 0], "end": [9, 9, 9]},
}

INDEXING = [
    *(_one("slice_by_index", note=note, **arguments) for note, arguments in _SLICES.items()),
    _one("slice_by_size", begin=[0, 1, 2], size=[2, 1, 2]),
    _one("slice_by_size", note="rest", begin=[1, -2, 1], size=[-1, 2, -1]),
    Case(
        op="slice_by_size",
        note="computed",
        inputs=(X, np.array([0, 1, 1], np.int32)),
        build=lambda mb, x, begin: mb.slice_by_size(x=x, begin=begin, size=[2, 2, 3]),
        want=lambda x, begin: x[:2, 1:3, 1:4],
    ),
    Case(
        op="slice_update",
        target="iOS18",
        inputs=(X, floats(2, 2, 2, seed=3)),
        build=lambda mb, x, update: mb.slice_update(
            x=x, update=update, begin=[0, 1, 0], end=[2, 3, 4], stride=[1, 1, 2]
        ),
    ),
    Case(
        op="slice_update",
        note="squeezed",
        target="iOS18",
        inputs=(X, floats(2, 4, seed=3)),
        build=lambda mb, x, update: mb.slice_update(
            x=x, update=update, begin=[0, 1, 0], end=[2, 2, 4], squeeze_mask=[False, True, False]
        ),
    ),
    *(
        Case(
            op="gather",
            note=f"axis {axis}",
            inputs=(X, integers(2, 5, high=3 if axis in (1, -2) else 2, low=-2)),
            build=lambda mb, x, i, axis=axis: mb.gather(x=x, indices=i, axis=axis),
        )
        for axis in (0, 1, -2)
    ),
    Case(
        op="gather",
        note="scalar",
        inputs=(X, np.array([2], np.int32)),
        build=lambda mb, x, i: mb.gather(x=x, indices=mb.squeeze(x=i), axis=1),
        want=lambda x, i: x[:, 2],
    ),
    Case(
        op="gather",
        note="batched",
        target="iOS16",
        inputs=(floats(2, 3, 4, 5), integers(2, 3, 6, high=5)),
        build=lambda mb, x, i: mb.gather(x=x, indices=i, axis=-1, batch_dims=2),
        want=lambda x, i: np.take_along_axis(x, np.broadcast_to(i[:, :, None], (2, 3, 4, 6)), -1),
    ),
    Case(
        op="gather_along_axis",
        inputs=(X, integers(2, 5, 4, high=3, low=-3)),
        build=lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
    ),
    Case(
        op="gather_nd",
        inputs=(X, integers(5, 2, high=2)),
        build=lambda mb, x, i: mb.gather_nd(x=x, indices=i),
        want=lambda x, i: x[i[:, 0], i[:, 1]],
    ),
    Case(
        op="gather_nd",
        note="batched",
        target="iOS16",
        inputs=(X, integers(2, 5, 2, high=3)),
        build=lambda mb, x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        want=lambda x, i: np.stack([x[n][i[n, :, 0], i[n, :, 1]] for n in range(2)]),
    ),
    *(
        Case(
            op="scatter",
            note=f"{mode} along {axis}",
            inputs=(
                floats(3, 4),
                np.array([2, 0], np.int32),
                floats(*((2, 4) if axis == 0 else (3, 2)), seed=2, low=0.5),
            ),
            build=lambda mb, x, i, u, axis=axis, mode=mode: mb.scatter(
                data=x, indices=i, updates=u, axis=axis, mode=mode
            ),
            want=_scatter(mode, axis),
        )
        for mode, axis in [*((mode, 0) for mode in _MODES), ("add", -1), ("update", 1)]
    ),
    *(
        Case(
            op="scatter_along_axis",
            note=mode,
            inputs=(X, np.argsort(X, axis=1)[:, :2].astype(np.int32), floats(2, 2, 4, seed=2, low=0.5)),
            build=lambda mb, x, i, u, mode=mode: mb.scatter_along_axis(data=x, indices=i, updates=u, axis=1, mode=mode),
            want=_scatter_along(mode),
        )
        for mode in _MODES
    ),
    *(
        Case(
            op="scatter_nd",
            note=mode,
            inputs=(X, np.array([[0, 2], [1, 0]], np.int32), floats(2, 4, seed=2, low=0.5)),
            build=lambda mb, x, i, u, mode=mode: mb.scatter_nd(data=x, indices=i, updates=u, mode=mode),
            want=_scatter_nd(mode),
        )
        for mode in _MODES
    ),
]

POSITIVE = floats(2, 3, 4, low=0.1)
REDUCTIONS = [
    case
    for op in (
        "reduce_l1_norm",
        "reduce_l2_norm",
        "reduce_log_sum",
        "reduce_log_sum_exp",
        "reduce_max",
        "reduce_mean",
        "reduce_min",
        "reduce_prod",
        "reduce_sum",
        "reduce_sum_square",
    )
    for case in (
        _one(op, POSITIVE, "two axes", axes=[0, -1]),
        _one(op, POSITIVE, "kept", axes=[1], keep_dims=True),
        _one(op, POSITIVE, "all", keep_dims=True),
    )
] + [
    *(_one(op, INTS, "integers", axes=[1]) for op in ("reduce_max", "reduce_min", "reduce_prod", "reduce_sum")),
    *(
        case
        for op in ("reduce_argmax", "reduce_argmin")
        for case in (
            _one(op, axis=1),
            _one(op, note="kept", axis=-1, keep_dims=True),
            _one(op, note="short", target="iOS17", axis=0, output_dtype="uint16"),
        )
    ),
]

CASES = SHAPES + INDEXING + REDUCTIONS
