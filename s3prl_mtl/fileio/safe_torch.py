"""PyTorch files written by other programs, read without running what their pickles ask for.

Such files name classes of those programs. Each class that we know is replaced by a stand-in that
only holds attributes; a file that names any other is refused.
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
# torch.save before 1.6 began with its magic number, pickled.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
DOS_FOLDER = 0x10  # a bit of the attributes that a zip file's index gives each part
CLASS_KEY = "__class__"


class DamagedFile(UserError):
    """The file was written whole once and is not any more: cut short, or bytes of it changed."""


class Inert:
    """Holds the attributes of an object whose class we do not load."""

    def __init__(self, *arguments: object) -> None:
        self.__dict__["_arguments"] = arguments


class Dictionary(Inert):
    """``fairseq.data.dictionary.Dictionary``: the symbols of a pre-training target."""


class Namespace(Inert):
    """``argparse.Namespace``: the settings in older files."""


class OmegaConfNode(Inert):
    """A container or value of OmegaConf; ``_content`` or ``_val`` holds what matters."""


class OmegaConfMetadata(Inert):
    """What OmegaConf knows about the types of a node; of no use here."""


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
    (OmegaConfMetadata, "omegaconf.base.Metadata"),
    (OmegaConfMetadata, "omegaconf.base.ContainerMetadata"),
    # Named as types inside OmegaConf's metadata; calling them does no harm.
    (OmegaConfMetadata, "typing.Any"),
    (dict, "builtins.dict"),
    (list, "builtins.list"),
    (int, "builtins.int"),
    (float, "builtins.float"),
    (str, "builtins.str"),
    (bool, "builtins.bool"),
    (defaultdict, "collections.defaultdict"),
]


def load_inert(path: Path, *, kind: str, verify: bool = False) -> Any:
    """Load a file of ``torch.save`` without executing anything that it holds.

    Tensors are mapped from the file, not read, where the format allows it.

    Args:
        path: the file.
        kind: what it should be, for messages ("fairseq checkpoint").
        verify: read all of it first and compare its checksums, which torch does not.

    Raises:
        DamagedFile: the file is empty, truncated, or bytes of it changed.
        UserError: no such file, it cannot be read, it is not a PyTorch file, or it names a class
            or function other than those known; the message names it.
    """
    where = str(path)
    another = f"Give the path of a whole {kind}: another copy, or an older one."
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"The {kind} {what}.", where=where, fix="Give the path of a file.")
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
                f"The {kind} asks for {foreign.group(1)!r}, which is not part of such files. "
                "It was refused, and nothing in it was executed.",
                where=where,
                fix="Take the file from its publisher.",
            ) from None
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise UserError(
            f"The {kind} was refused, and nothing in it was executed: {reason}",
            where=where,
            fix="Take the file from its publisher.",
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
        reason = f"{type(error).__name__}: " + str(error).split("\n")[0][:200]
        # Where the checksums are right, only the archive's index can still be wrong, and of that
        # torch speaks in these words. Anything else is how the file was written, or the system.
        of_index = re.match(r"RuntimeError: PytorchStreamReader(?!.*file \w+ failed)", reason)
        if verified and not of_index:
            raise UserError(
                f"The {kind} cannot be loaded ({reason}).", where=where, fix=another
            ) from None
        raise _damaged(reason, path, kind, another) from None


def _unknown_beginning(beginning: bytes, path: Path, kind: str, another: str) -> UserError:
    """What a file is that does not begin as those of torch.save: a damaged one, or no such file.

    A power cut may leave a file of the right size that holds zeros only, or nothing.
    """
    where = str(path)
    if not beginning:
        return DamagedFile(f"The {kind} is empty.", where=where, fix=another)
    cut_short = ZIP_MAGIC.startswith(beginning) or LEGACY_MAGIC.startswith(beginning)
    if cut_short or not any(beginning) or zipfile.is_zipfile(path):
        return _damaged("its first bytes are wrong", path, kind, another)
    return UserError(f"The {kind} is not a file of torch.save.", where=where, fix=another)


def _unreadable(error: OSError, kind: str, where: str) -> UserError:
    return UserError(f"The {kind} cannot be read: {error.strerror or error}.", where=where)


def _is_of_disk(error: OSError) -> bool:
    """Whether the file itself may be whole: a wrong offset in it is an invalid argument."""
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
        # A bit of the index may ask for a password or for a compression that nobody used.
        RuntimeError,
    ) as error:
        # `zipfile` hides an error of the disk behind its own where it looks for the index.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and _is_of_disk(cause):
            raise _unreadable(cause, kind, str(path)) from None
        raise _damaged(str(error), path, kind, another) from None
    if damaged is not None:
        raise DamagedFile(
            f"The {kind} is damaged: the checksum of its part {damaged} is wrong.",
            where=str(path),
            fix=another,
        )
    for member in members:
        # torch takes a part that is marked as a folder for read, and what was in memory for it.
        if member.external_attr & DOS_FOLDER and not member.is_dir():
            reason = f"its part {member.filename} is marked as a folder"
            raise _damaged(reason, path, kind, another)
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise UserError(f"The {kind} is not a file of torch.save.", where=str(path), fix=another)


def _damaged(reason: str, path: Path, kind: str, another: str) -> DamagedFile:
    return DamagedFile(
        f"The {kind} is truncated or damaged ({reason}).", where=str(path), fix=another
    )


def to_plain(value: Any) -> Any:
    """Loaded objects as plain values and tensors, fit for ``torch.load(weights_only=True)``.

    OmegaConf containers become dicts and lists. Dictionaries and namespaces become dicts with
    their class name under ``"__class__"``; :func:`from_plain` turns them back.
    """
    if isinstance(value, OmegaConfNode):
        attributes = vars(value)
        content = attributes["_content"] if "_content" in attributes else attributes.get("_val")
        return to_plain(content)
    if isinstance(value, OmegaConfMetadata | type):
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
    stand_ins = {"Dictionary": Dictionary, "Namespace": Namespace}
    if isinstance(value, Mapping):
        held = {key: from_plain(inner) for key, inner in value.items()}
        if CLASS_KEY not in held:
            return held
        stand_in = stand_ins[held.pop(CLASS_KEY)].__new__(stand_ins[value[CLASS_KEY]])
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
# The one in C cannot be taught names; this one is the same format, written in Python.
_PythonPickler: Any = pickle._Pickler


class _NamingPickler(_PythonPickler):
    """Writes the stand-ins under the names of the classes they stand for.

    An ordinary pickler imports a class to check its name, and fairseq need not be installed.
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
    """``pickle_module`` for ``torch.save`` that writes the stand-ins' original names."""

    Pickler = _NamingPickler
    dumps = staticmethod(pickle.dumps)
