"""s3prl's own experts as tasks: `-d s3prl:<folder>`, unmodified, with their config files."""
