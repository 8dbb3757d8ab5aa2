"""Read PyTorch files of other programs without executing their pickles.

Such files contain objects of the classes of those programs. Known classes are replaced by
stand-ins that only hold attributes; a file with objects of other classes is refused.
"""

from __future__ import annotations

import errno
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from s3prl_mtl.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
# The pickled magic number at the beginning of files from torch before 1.6.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
DOS_FOLDER = 0x10  # a bit of the attributes of a part in the index of a zip file
CLASS_KEY = "__class__"


class DamagedFile(UserError):
    """The file is truncated, or bytes of it have changed since it was written."""


class StandIn:
    """Stand-in for the class of an object, with its attributes only."""

    def __init__(self, *arguments: object) -> None:
        self.__dict__["_arguments"] = arguments


class Dictionary(StandIn):
    """``fairseq.data.dictionary.Dictionary``: the symbols of a pre-training target."""


class Namespace(StandIn):
    """``argparse.Namespace``: the settings in older files."""


class OmegaConfNode(StandIn):
    """A container or value of OmegaConf; the contents are in ``_content`` or ``_val``."""


class NumpyType(StandIn):
    """``numpy.dtype`` of a number."""

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and fields: the code of :data:`_NUMBERS` is sufficient."""


def _number(kind: object, content: object) -> object:
    """``numpy.core.multiarray.scalar``: the number, or None for any other content."""
    arguments = getattr(kind, "_arguments", None) or [None]
    layout = _NUMBERS.get(arguments[0])
    if layout is None or not isinstance(content, bytes) or len(content) != struct.calcsize(layout):
        return None
    return struct.unpack(layout, content)[0]


_NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "?"}


class OmegaConfMetadata(StandIn):
    """Type information of OmegaConf; not used."""


_OMEGACONF_NODES = (
    "dictconfig.DictConfig",
    "listconfig.ListConfig",
    "nodes.AnyNode",
    "nodes.StringNode",
    "nodes.IntegerNode",
    "nodes.FloatNode",
    "nodes.BooleanNode",
)
_STAND_INS: list[Any] = [
    (Dictionary, "fairseq.data.dictionary.Dictionary"),
    (Namespace, "argparse.Namespace"),
    *((OmegaConfNode, f"omegaconf.{name}") for name in _OMEGACONF_NODES),
    (NumpyType, "numpy.dtype"),
    # Best scores in files that third parties trained.
    *((_number, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    (OmegaConfMetadata, "omegaconf.base.Metadata"),
    (OmegaConfMetadata, "omegaconf.base.ContainerMetadata"),
    # Types in OmegaConf's metadata; calling them is harmless.
    (OmegaConfMetadata, "typing.Any"),
    (dict, "builtins.dict"),
    (list, "builtins.list"),
    (int, "builtins.int"),
    (float, "builtins.float"),
    (str, "builtins.str"),
    (bool, "builtins.bool"),
    (defaultdict, "collections.defaultdict"),
]


def safe_load(path: Path, *, kind: str, verify: bool = False) -> Any:
    """Load a file of ``torch.save`` without executing anything in it.

    Tensors are memory-mapped where the format allows it.

    Args:
        path: the file.
        kind: expected contents, for errors ("fairseq checkpoint").
        verify: read the whole file first and compare its checksums, which torch does not do.

    Raises:
        DamagedFile: the file is empty, truncated, or bytes of it have changed.
        UserError: the file does not exist, cannot be read, is not a PyTorch file, or contains
            objects of an unknown class or function, which is named.
    """
    where = str(path)
    another = f"Give the path of a whole {kind}: another copy, or an older one."
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(
                f"The {kind} {what}.",
                where=where,
                fix="Give the path of a file.",
                code="checkpoint-missing",
            )
        with path.open("rb") as file:
            beginning = file.read(len(LEGACY_MAGIC))
        is_zip = beginning.startswith(ZIP_MAGIC)
        if not is_zip and beginning != LEGACY_MAGIC:
            raise _unknown_beginning(beginning, path, kind, another)
    except OSError as error:
        raise _unreadable(error, kind, where) from None
    verified = verify and is_zip
    if verified:
        _verify_checksums(path, kind, another)
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise UserError(
                f"The {kind} contains {foreign.group(1)!r}, which is not part of such files. "
                "It was refused, and nothing in it was executed.",
                where=where,
                fix="Use the file from its publisher.",
                code="torch-file-refused",
            ) from None
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        if "eights_only" in reason or "Weights only" in reason:
            reason = "it has objects other than tensors and plain values."  # no advice of torch's
        raise UserError(
            f"The {kind} was refused, and nothing in it was executed: {reason}",
            where=where,
            fix="Use the file from its publisher.",
            code="torch-file-refused",
        ) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, OSError) and _is_of_disk(error):
            raise _unreadable(error, kind, where) from None
        if "weights_only" in str(error):
            # Archives of TorchScript, and tar files from before torch 0.4.
            raise UserError(
                f"The {kind} is not a file of weights, but a program (TorchScript) or in a format "
                "that current versions of torch no longer read. Nothing in it was executed.",
                where=where,
                fix="Save the state dict of the model with torch.save.",
                code="checkpoint-format",
            ) from None
        reason = f"{type(error).__name__}: " + str(error).split("\n")[0][:200]
        # If the checksums are correct, only the index of the archive can be wrong, which torch
        # reports like this. Other errors are due to how the file was written, or to the system.
        of_index = re.match(r"RuntimeError: PytorchStreamReader(?!.*file \w+ failed)", reason)
        if verified and not of_index:
            raise UserError(
                f"The {kind} cannot be loaded ({reason}).",
                where=where,
                fix=another,
                code="file-unreadable",
            ) from None
        raise _damaged(reason, path, kind, another) from None


def _unknown_beginning(beginning: bytes, path: Path, kind: str, another: str) -> UserError:
    """The error for a file without the first bytes of a PyTorch file.

    After a power failure a file may be empty, or consist of zeros.
    """
    where = str(path)
    if not beginning:
        return DamagedFile(
            f"The {kind} is empty.", where=where, fix=another, code="torch-file-refused"
        )
    cut_short = ZIP_MAGIC.startswith(beginning) or LEGACY_MAGIC.startswith(beginning)
    if cut_short or not any(beginning) or zipfile.is_zipfile(path):
        return _damaged("its first bytes are wrong", path, kind, another)
    return UserError(
        f"The {kind} is not a file of torch.save.",
        where=where,
        fix=another,
        code="checkpoint-format",
    )


def _unreadable(error: OSError, kind: str, where: str) -> UserError:
    return UserError(
        f"The {kind} cannot be read: {error.strerror or error}.",
        where=where,
        code="file-unreadable",
    )


def _is_of_disk(error: OSError) -> bool:
    """Whether an error comes from the disk; a wrong offset in the file gives EINVAL."""
    return error.errno not in (None, errno.EINVAL)


def _verify_checksums(path: Path, kind: str, another: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            members = archive.infolist()
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        # A changed bit of the index may require a password or another compression.
        RuntimeError,
    ) as error:
        # `zipfile` raises its own error for a disk error while it searches the index.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and _is_of_disk(cause):
            raise _unreadable(cause, kind, str(path)) from None
        raise _damaged(str(error), path, kind, another) from None
    if damaged is not None:
        raise DamagedFile(
            f"The {kind} is damaged: the checksum of its part {damaged} is wrong.",
            where=str(path),
            fix=another,
            code="torch-file-refused",
        )
    for member in members:
        # torch does not read a part that is marked as a folder, and uses uninitialised memory.
        if member.external_attr & DOS_FOLDER and not member.is_dir():
            reason = f"its part {member.filename} is marked as a folder"
            raise _damaged(reason, path, kind, another)
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise UserError(
            f"The {kind} is not a file of torch.save.",
            where=str(path),
            fix=another,
            code="checkpoint-format",
        )


def _damaged(reason: str, path: Path, kind: str, another: str) -> DamagedFile:
    return DamagedFile(
        f"The {kind} is truncated or damaged ({reason}).",
        where=str(path),
        fix=another,
        code="torch-file-refused",
    )


def to_plain(value: Any) -> Any:
    """Convert loaded objects to plain values and tensors for ``torch.load(weights_only=True)``.

    OmegaConf containers become dicts and lists. Dictionaries and namespaces become dicts with
    their class name under ``"__class__"``; :func:`from_plain` turns them back.
    """
    if isinstance(value, OmegaConfNode):
        attributes = vars(value)
        content = attributes["_content"] if "_content" in attributes else attributes.get("_val")
        return to_plain(content)
    if isinstance(value, OmegaConfMetadata | NumpyType | type):
        return None
    if isinstance(value, Dictionary | Namespace):
        attributes = {name: to_plain(held) for name, held in vars(value).items()}
        attributes.pop("_arguments", None)
        return {CLASS_KEY: type(value).__name__, **attributes}
    if isinstance(value, OrderedDict):
        return OrderedDict((key, to_plain(held)) for key, held in value.items())
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(held) for key, held in value.items()}
    if isinstance(value, tuple):
        return tuple(to_plain(held) for held in value)
    if isinstance(value, list):
        return [to_plain(held) for held in value]
    return value


def from_plain(value: Any) -> Any:
    """The inverse of :func:`to_plain` for dictionaries and namespaces."""
    classes = {"Dictionary": Dictionary, "Namespace": Namespace}
    if isinstance(value, Mapping):
        held = {key: from_plain(inner) for key, inner in value.items()}
        if CLASS_KEY not in held:
            return held
        stand_in_class = classes[held.pop(CLASS_KEY)]
        stand_in = stand_in_class.__new__(stand_in_class)
        stand_in.__dict__.update(held)
        return stand_in
    if isinstance(value, tuple):
        return tuple(from_plain(held) for held in value)
    if isinstance(value, list):
        return [from_plain(held) for held in value]
    return value


_ORIGINAL_NAMES = {
    Dictionary: ("fairseq.data.dictionary", "Dictionary"),
    Namespace: ("argparse", "Namespace"),
}
# The pickler in C cannot be subclassed for this; this one writes the same format.
_PythonPickler: Any = pickle._Pickler


class _NamingPickler(_PythonPickler):
    """Pickle stand-ins under the names of the original classes.

    An ordinary pickler imports a class to check its name, which would require fairseq.
    """

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj in _ORIGINAL_NAMES:
            module, qualified_name = _ORIGINAL_NAMES[obj]
            self.write(pickle.GLOBAL + f"{module}\n{qualified_name}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch: ClassVar[dict[type, Any]] = {**_PythonPickler.dispatch, type: save_global}


class NamingPickle:
    """``pickle_module`` for ``torch.save`` that writes original class names."""

    Pickler = _NamingPickler
    dumps = staticmethod(pickle.dumps)
