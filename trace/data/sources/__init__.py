"""Public data sets, one's own points and sample archives, as the records that training reads.

    python -m trace.data.sources check --data X.json --images DIR
    python -m trace.data.sources convert --kind lvis --path lvis_v1_train.json --images COCO --out lvis.json
    python -m trace.data.sources download --repo wentao-yuan/robopoint-data --out robopoint-data

Every reader streams: memory grows with the number of ids, never with the file.
"""
