"""Encoders of s3prl's zoo and of Hugging Face."""
