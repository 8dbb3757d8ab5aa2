"""Train and evaluate one speech encoder on many tasks: `python run_mtl.py --help`."""

from s3prl_mtl.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
