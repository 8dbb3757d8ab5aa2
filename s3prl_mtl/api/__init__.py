"""The commands of the command line as functions: `from s3prl_mtl import api; api.train(...)`.

Arguments have the names of the flags. The functions raise a `UserError` for a mistake, never exit
the process, leave logging and signal handlers as they were, and print nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3prl_mtl.api.clusters import FrameLabels, cluster
    from s3prl_mtl.api.corpora import (
        Shards,
        WrittenTables,
        check_corpus,
        make_corpus,
        manifest,
        shard,
    )
    from s3prl_mtl.api.cross_validation import CrossValidation, FoldNotTrained, folds
    from s3prl_mtl.api.encoders import export, merge
    from s3prl_mtl.api.evaluation import evaluate
    from s3prl_mtl.api.listings import (
        ListedBalancer,
        ListedTask,
        ListedUpstream,
        balancers,
        tasks,
        upstreams,
    )
    from s3prl_mtl.api.prediction import Predictions, predict
    from s3prl_mtl.api.reports import (
        MeasuredAffinity,
        Report,
        Selection,
        affinity,
        report,
        results,
        select,
    )
    from s3prl_mtl.api.run_results import RunResults, UnscoredSplits
    from s3prl_mtl.api.service import serve
    from s3prl_mtl.api.studies import (
        PlannedStudy,
        StudyResults,
        demo,
        plan_study,
        study,
        sweep_learning_rates,
    )
    from s3prl_mtl.api.training import train

__all__ = [
    "CrossValidation",
    "FoldNotTrained",
    "FrameLabels",
    "ListedBalancer",
    "ListedTask",
    "ListedUpstream",
    "MeasuredAffinity",
    "PlannedStudy",
    "Predictions",
    "Report",
    "RunResults",
    "Selection",
    "Shards",
    "StudyResults",
    "UnscoredSplits",
    "WrittenTables",
    "affinity",
    "balancers",
    "check_corpus",
    "cluster",
    "demo",
    "evaluate",
    "export",
    "folds",
    "make_corpus",
    "manifest",
    "merge",
    "plan_study",
    "predict",
    "report",
    "results",
    "select",
    "serve",
    "shard",
    "study",
    "sweep_learning_rates",
    "tasks",
    "train",
    "upstreams",
]

_HOMES = {
    "CrossValidation": "cross_validation",
    "FoldNotTrained": "cross_validation",
    "FrameLabels": "clusters",
    "ListedBalancer": "listings",
    "ListedTask": "listings",
    "ListedUpstream": "listings",
    "MeasuredAffinity": "reports",
    "PlannedStudy": "studies",
    "Predictions": "prediction",
    "Report": "reports",
    "RunResults": "run_results",
    "Selection": "reports",
    "Shards": "corpora",
    "StudyResults": "studies",
    "UnscoredSplits": "run_results",
    "WrittenTables": "corpora",
    "affinity": "reports",
    "balancers": "listings",
    "check_corpus": "corpora",
    "cluster": "clusters",
    "demo": "studies",
    "evaluate": "evaluation",
    "export": "encoders",
    "folds": "cross_validation",
    "make_corpus": "corpora",
    "manifest": "corpora",
    "merge": "encoders",
    "plan_study": "studies",
    "predict": "prediction",
    "report": "reports",
    "results": "reports",
    "select": "reports",
    "serve": "service",
    "shard": "corpora",
    "study": "studies",
    "sweep_learning_rates": "studies",
    "tasks": "listings",
    "train": "training",
    "upstreams": "listings",
}


def __getattr__(name: str) -> Any:
    # Lazy, as in `s3prl_mtl`: help need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
