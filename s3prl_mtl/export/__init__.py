"""Export the encoder of a run to fairseq, transformers, s3prl and ONNX."""

from s3prl_mtl.export.command import FORMATS, export

__all__ = ["FORMATS", "export"]
