"""Golden values of agreement between raters: Cohen's kappa by scikit-learn, Krippendorff's alpha by the package of that name.

    python3 -m venv VENV && VENV/bin/pip install scikit-learn krippendorff
    VENV/bin/python tests/golden/generate_agreement.py > tests/golden/agreement.json
"""
import importlib.metadata
import itertools
import json
import math
import random
import sys

import krippendorff
import numpy as np
from sklearn.metrics import cohen_kappa_score

VERSIONS = {name: importlib.metadata.version(name) for name in ("scikit-learn", "krippendorff", "numpy")}


def case(seed, raters, items, values, noise, missing):
    """Raters who see a truth through noise, with holes."""
    rng = random.Random(seed)
    table = [[None] * items for _ in range(raters)]
    for i in range(items):
        truth = rng.choice(values)
        for r in range(raters):
            if rng.random() < missing:
                continue
            table[r][i] = rng.choice(values) if rng.random() < noise else truth
    data = np.array([[math.nan if v is None else v for v in row] for row in table], dtype=float)
    pairs = []
    for a, b in itertools.combinations(range(raters), 2):
        both = [(table[a][i], table[b][i]) for i in range(items) if table[a][i] is not None and table[b][i] is not None]
        kappa = cohen_kappa_score(*zip(*both), labels=values) if both else math.nan
        pairs.append({"a": a, "b": b, "common": len(both), "kappa": None if math.isnan(kappa) else float(kappa)})
    return {
        "table": table,
        "pairs": pairs,
        "alpha_nominal": float(krippendorff.alpha(reliability_data=data, level_of_measurement="nominal", value_domain=values)),
        "alpha_interval": float(krippendorff.alpha(reliability_data=data, level_of_measurement="interval", value_domain=values)),
    }


def main():
    cases = [
        case(1, 2, 40, [0, 1, 2], 0.3, 0.0),
        case(2, 3, 60, [0, 1, 2], 0.2, 0.3),
        case(3, 5, 50, [1, 2, 3, 4, 5], 0.5, 0.4),
        case(4, 4, 30, [0, 1], 0.9, 0.2),
        case(5, 6, 80, [0, 1, 2], 0.05, 0.6),
    ]
    json.dump({"versions": VERSIONS, "cases": cases}, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
