"""A small spoken corpus, synthesised by espeak-ng in the folder layouts of the nine tasks.

    DIR/
      mini_corpus.json                      what this is: size, seed, version
      LibriSpeech/                          asr, pr
      speech_commands_v0.01/                ks
      speech_commands_test_set_v0.01/       ks
      fluent_speech_commands_dataset/       ic
      VoxCeleb1/                            sid, sv
      IEMOCAP_full_release/                 er
      SNIPS/                                sf
      Libri2Mix/                            sd

It is speech enough to learn every task from, and to test the whole way of the data on; it is no
benchmark. One module lays out one corpus.
"""

from s3prl_mtl.data.mini_corpus.build import make_corpus

__all__ = ["make_corpus"]
