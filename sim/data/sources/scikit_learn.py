"""The tables that come with scikit-learn: breast-cancer, wine and diabetes; nothing is downloaded.

Their test splits are fixed and do not depend on the run's seed; those of classes are stratified.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.data.columns import Columns, LoadedColumns

_TEST_SHARE = 0.2


def breast_cancer() -> LoadedColumns:
    """Tumours as benign or malignant: 455 and 114 examples, 30 features float32, 2 classes int64.

    The features, which have very different units, are standardised by the mean and the standard deviation of the
    training split. Source: W. Wolberg et al., "Breast Cancer Wisconsin (Diagnostic)", UCI Machine Learning
    Repository, 1995.
    """
    from sklearn.datasets import load_breast_cancer

    return _classes(load_breast_cancer())


def wine() -> LoadedColumns:
    """Wines of three growers: 142 and 36 examples, 13 features float32, 3 classes int64.

    The features are standardised by the training split. Source: S. Aeberhard and M. Forina, "Wine", UCI Machine
    Learning Repository, 1992.
    """
    from sklearn.datasets import load_wine

    return _classes(load_wine())


def diabetes() -> LoadedColumns:
    """Progression of diabetes after one year: 353 and 89 examples, 10 features float32, targets float32 in 25 … 346.

    Features and targets are those of scikit-learn, which has standardised the features by all examples. Source:
    B. Efron et al., "Least Angle Regression", Annals of Statistics, 2004.
    """
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    train, test = _split(len(data.target), None)
    inputs, targets = data.data.astype(np.float32), data.target.astype(np.float32)
    return LoadedColumns(
        Columns([inputs[train], targets[train]]), Columns([inputs[test], targets[test]]), is_regression=True
    )


def _classes(data: Any) -> LoadedColumns:
    train, test = _split(len(data.target), data.target)
    mean, deviation = data.data[train].mean(axis=0), data.data[train].std(axis=0)
    inputs, targets = ((data.data - mean) / deviation).astype(np.float32), data.target.astype(np.int64)
    return LoadedColumns(
        Columns([inputs[train], targets[train]]),
        Columns([inputs[test], targets[test]]),
        tuple(str(name) for name in data.target_names),
    )


def _split(count: int, classes: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(count), test_size=_TEST_SHARE, random_state=0, stratify=classes)
    return np.sort(train), np.sort(test)


TABLES = {"breast-cancer": breast_cancer, "wine": wine, "diabetes": diabetes}
