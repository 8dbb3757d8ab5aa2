"""PyTorch files written by other programs, read without running what their pickles ask for.

Such files name classes of those programs. Each class that we know is replaced by a stand-in that
only holds attributes; a file that names any other is refused.
"""

from __future__ import annotations

import pickle
import re
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
CLASS_KEY = "__class__"


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
        UserError: no such file, not a PyTorch file, truncated, or it names a class or function
            other than those known; the message names it.
    """
    where = str(path)
    another = f"Give the path of a whole {kind}: another copy, or an older one."
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"The {kind} {what}.", where=where, fix="Give the path of a file.")
    try:
        with path.open("rb") as file:
            beginning = file.read(len(LEGACY_MAGIC))
    except OSError as error:
        raise UserError(f"The {kind} cannot be read: {error.strerror}.", where=where) from None
    is_zip = beginning.startswith(ZIP_MAGIC)
    if not is_zip and beginning != LEGACY_MAGIC:
        what = "is empty" if not beginning else "is not a file of torch.save"
        raise UserError(f"The {kind} {what}.", where=where, fix=another)
    if verify and is_zip:
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
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"The {kind} is truncated or damaged ({type(error).__name__}: {reason}).",
            where=where,
            fix=another,
        ) from None


def _verify_checksums(path: Path, kind: str, another: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"The {kind} is truncated or damaged ({error}).", where=str(path), fix=another
        ) from None
    if damaged is not None:
        raise UserError(
            f"The {kind} is damaged: the checksum of its part {damaged} is wrong.",
            where=str(path),
            fix=another,
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
