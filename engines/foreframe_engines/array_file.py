"""Numpy's `.npz` files as bytes: how much they would unpack to, checked before anything is unpacked."""

import io
import math
import zipfile
import zlib

import numpy as np
from numpy.lib import format as npy

from foreframe_engines.errors import BundleError

MAX_ARRAYS_BYTES = 2**30
"""Of all arrays of one file together, unpacked."""
_MAX_ARRAYS = 64
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def check_arrays(content: memoryview, where: str) -> None:
    """Check that an archive holds arrays of plain numbers, of the sizes their headers state, and not too many.

    Raises BundleError.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_ARRAYS or sum(member.file_size for member in members) > MAX_ARRAYS_BYTES:
                raise BundleError(f"{where} unpacks to more than {MAX_ARRAYS_BYTES} bytes or {_MAX_ARRAYS} arrays")
            for member in members:
                _check_array(archive, member, f"{where}: {member.filename!r}")
    except _DAMAGE as error:
        raise BundleError(f"{where} is not a whole archive of arrays") from error


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _READ_HEADER:
            raise BundleError(f"{where} is written in a form that is not read")
        shape, _, dtype = _READ_HEADER[version](file)
        if dtype.hasobject or dtype.kind not in "biufU":
            raise BundleError(f"{where} holds {dtype}, which are no plain numbers")
        if file.tell() + math.prod(shape) * np.dtype(dtype).itemsize != member.file_size:
            raise BundleError(f"{where} has other bytes than its shape {list(shape)} needs")
