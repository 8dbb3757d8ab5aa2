"""A small spoken corpus, synthesised by espeak-ng in the folder layouts of the nine tasks.

    DIR/
      mini_corpus.json                      size, seed, version
      LibriSpeech/                          asr, pr
      speech_commands_v0.01/                ks
      speech_commands_test_set_v0.01/       ks
      fluent_speech_commands_dataset/       ic
      VoxCeleb1/                            sid, sv
      IEMOCAP_full_release/                 er
      SNIPS/                                sf
      Libri2Mix/                            sd

It suffices to train every task and to test the whole data path, but it is not a benchmark. Each
module writes one corpus.
"""

from s3prl_mtl.data.mini_corpus.build import make_corpus

__all__ = ["make_corpus"]
