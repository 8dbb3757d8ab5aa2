"""Processes forked from a server that has imported the project, instead of new interpreters.

All tests of a worker share the server, so there is only one list of modules.
"""

from __future__ import annotations

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "s3prl_mtl.authoring",
        "s3prl_mtl.training.runner",
        "downstream_plugins.sd",
        "torch._dynamo",  # Every optimizer imports it.
    ]
)
