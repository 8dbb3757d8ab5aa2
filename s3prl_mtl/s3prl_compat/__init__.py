"""Run experts written for s3prl as tasks; import torchaudio with missing parts replaced."""
