"""Train and evaluate one speech encoder on many tasks: `python run_mtl.py --help`."""

from s3prl_mtl.cli import main

raise SystemExit(main())
