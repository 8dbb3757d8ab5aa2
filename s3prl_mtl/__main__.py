"""`python -m s3prl_mtl <command>`."""

from s3prl_mtl.cli.main import main

raise SystemExit(main())
