"""The operating point of the paper's experiments: `python benchmarks/threshold.py PATH/train.jsonl`.

The threshold at which at most 2 % of safe texts are blocked under suffix erasures of 20 words, with 95 % confidence,
from the tenth of the training-side safe texts that `filters/minilm/train.py` holds out. No row of bench.jsonl is read.
Writes threshold.json, a file of `promptguard calibrate`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "filters" / "recipe"))

from data import load_rows, split_rows  # noqa: E402

from promptguard import load_filter, load_mode, load_units  # noqa: E402
from promptguard.evaluate.calibrate import calibrate  # noqa: E402

MAX_FPR = 0.02


def main() -> None:
    """Score the held-out safe texts and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="train.jsonl")
    path = parser.parse_args().train
    texts = [row["text"] for row in split_rows(load_rows(path), shift=False).held if row["label"] == "safe"]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    with tqdm(total=len(texts), unit="text") as bar:
        made = calibrate(
            load_filter("minilm"),
            load_mode("suffix", 20),
            load_units("word"),
            texts,
            max_fpr=MAX_FPR,
            data=digest,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    made.save(HERE / "threshold.json")
    print(f"threshold {made.threshold!r} from {made.texts} held-out safe texts")


if __name__ == "__main__":
    main()
