"""Public data sets, one's own points and sample archives, as the records that training reads.

    python -m trace.data.sources check --data X.json --image-folder DIR
    python -m trace.data.sources convert --kind lvis --path lvis_v1_train.json --image-folder COCO --out lvis.json
    python -m trace.data.sources download --repo wentao-yuan/robopoint-data --out robopoint-data

Every reader streams: memory grows with the number of ids (about a hundred bytes each), never with the file. What is
wrong with a sample is a `Problem` that names it; strict reading stops there, otherwise it is left out and counted.
"""

from .problems import Problem, Problems
from .registry import KINDS, Source, read_source

__all__ = ["KINDS", "Problem", "Problems", "Source", "read_source"]
