"""Encoders of other packages: s3prl's zoo and Hugging Face's transformers."""
