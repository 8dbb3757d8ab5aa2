"""The encoder of a run as files of other programs: fairseq, transformers, s3prl, ONNX."""

from s3prl_mtl.export.command import FORMATS, export

__all__ = ["FORMATS", "export"]
