"""Replacements for torchaudio are visible to experts only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3prl_mtl.s3prl_compat.loading import load_expert
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from tests.mistakes import user_error

EVERY_FORM = """
import torchaudio
import torchaudio.transforms
import torchaudio.sox_effects as by_name
from torchaudio import load, sox_effects
from torchaudio.sox_effects import apply_effects_file
from torchaudio.transforms import Resample

torchaudio.set_audio_backend("sox_io")


class DownstreamExpert:
    apply = staticmethod(apply_effects_file)
    same = sox_effects is by_name is torchaudio.sox_effects
    transforms = torchaudio.transforms.Resample is Resample
    load = staticmethod(load)

    @staticmethod
    def later():
        from torchaudio.sox_effects import apply_effects_tensor
        import torchaudio as again

        return apply_effects_tensor, again is torchaudio
"""


def test_every_form_of_import_gives_the_same_torchaudio(expert_folder):
    expert = load_expert(str(expert_folder("forms", EVERY_FORM)))
    assert expert.same
    assert expert.transforms
    later, same = expert.later()
    assert same
    shorter, rate = later(torch.ones(1, 8), 4, [["trim", "1"]])
    assert (shorter.tolist(), rate) == ([[1.0] * 4], 4)


def test_imports_elsewhere_do_not_change(expert_folder: Callable[..., Path]):
    folder = expert_folder("forms", EVERY_FORM)
    script = f"""
import builtins, sys
before = builtins.__import__
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
ensure_torchaudio()
import torchaudio
had = set(vars(torchaudio))
from s3prl_mtl import load_task
expert = load_task("s3prl:{folder}")
load_task("s3prl:speech_commands")
assert builtins.__import__ is before and __builtins__.__import__ is before
import torchaudio as now
assert now is torchaudio is sys.modules["torchaudio"]
assert expert.load is not torchaudio.load
gained = set(vars(torchaudio)) - had
assert not gained & {{"sox_effects", "set_audio_backend", "info"}}, gained
for name in ("torchaudio.sox_effects", "catalyst"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit(f"{{name}} can be imported by everybody")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_experts_that_were_imported_before_are_imported_again():
    script = """
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
ensure_torchaudio()
import s3prl.downstream.ctc.data as plain
from s3prl_mtl.s3prl_compat.loading import load_expert
expert = load_expert("ctc")
import sys
ours = sys.modules["s3prl.downstream.ctc.data"]
assert ours is not plain
assert ours.torchaudio.info and not hasattr(plain.torchaudio, "info")
again = load_expert("ctc")
assert again is expert
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_relative_import_searches_beside_the_folder_then_in_s3prl(expert_folder):
    source = """
from ..model import MeanPooling
from ..neighbour import HERE
from .tones import Tones

class DownstreamExpert:
    parts = MeanPooling, HERE, Tones
"""
    folder = expert_folder("emotion", source)
    (folder.parent / "neighbour.py").write_text("HERE = 'beside'\n")
    pooling, here, tones = load_expert(str(folder)).parts
    assert pooling.__name__ == "MeanPooling"
    assert here == "beside"
    assert tones(3).size == 3, "the folder's own module, although s3prl has a folder `emotion`"


@pytest.mark.parametrize(
    ("source", "code", "named"),
    [
        ("import a_package_nobody_has\n", "missing-package", "'a_package_nobody_has'"),
        ("import dtw_nobody.parts\n", "missing-package", "'dtw_nobody'"),
        ("1 / 0\n", "expert-failed", "ZeroDivisionError"),
        ("from .nothing import here\n", "expert-failed", "ModuleNotFoundError"),
        ("raise SystemExit('no licence')\n", "expert-failed", "SystemExit: no licence"),
        ("class Expert:\n    pass\n", "expert-invalid", "DownstreamExpert"),
    ],
)
def test_an_expert_that_cannot_be_imported_is_named(
    expert_folder, source: str, code: str, named: str
):
    folder = expert_folder("broken", source)
    with user_error(code, where=str(folder / "expert.py")) as caught:
        load_expert(str(folder))
    assert named in caught.value.what


def test_an_unknown_folder_is_refused_with_the_nearest_name():
    with user_error("unknown-name", where="s3prl:fluent_comands", fix="'fluent_commands'"):
        load_expert("fluent_comands")


def test_torchaudio_itself_has_no_replacements():
    ensure_torchaudio()
    import torchaudio

    assert not hasattr(torchaudio, "sox_effects")
