"""Read a pickle of arrays, strings and numbers without letting it run anything.

Tevatron stores representations and rankings as pickles, and a pickle may name any function to call. Here it can name
three things only, numpy's array, its dtype and the two helpers that rebuild them, and even those are stood in for by
the recorders below, so that no byte of the file reaches numpy's own unpickling.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fastdense.errors import UserError

PLAIN_KINDS = "fiuSUb"  # floats, integers, bytes, strings, booleans; an object array could hold anything


class _Dtype:
    """What a pickle says about a dtype: the arguments of ``numpy.dtype`` and its state."""

    def __init__(self, code: str, *_: object) -> None:
        self.value = np.dtype(str(code))
        if self.value.kind not in PLAIN_KINDS:
            raise pickle.UnpicklingError(f"an array of dtype {self.value}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """What a pickle says about an array: shape, dtype, memory order and the raw bytes."""

    def __init__(self) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> None:
        # A copy-free view: the array is read-only, like the bytes.
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


class _ArrayUnpickler(pickle.Unpickler):
    allowed = {  # noqa: RUF012
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def _arrays(value: Any) -> Any:
    """``value`` with every recorder replaced by the array that it recorded."""
    match value:
        case _Array():
            return value.value
        case tuple() | list():
            if all(isinstance(item, str) for item in value):
                return value
            return type(value)(_arrays(item) for item in value)
        case dict():
            return {key: _arrays(item) for key, item in value.items()}
        case _:
            return value


def read_array_pickle(path: Path) -> Any:
    """The object in the pickle ``path``: numpy arrays, strings, numbers, and the built-in containers of these.

    Raises:
        UserError: the file is no pickle, is cut short, or names anything else (nothing of it has then run).
    """
    try:
        with path.open("rb") as file:
            if file.peek(2).startswith(b"PK"):
                raise UserError(f"{path} is a torch.save or zip archive; a pickle, .npy or .safetensors was expected")
            return _arrays(_ArrayUnpickler(file).load())
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no pickle of arrays and strings ({error}), so it was not loaded; write it again as "
            "(float array [N, d], list of N ids), .npy or .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is no readable pickle ({type(error).__name__}: {error})") from None
