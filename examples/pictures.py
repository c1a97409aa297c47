"""A question with a picture behind one guard: both are judged, each with its certificate.

pip install 'certified-promptguard[images]', then, with a folder of a transformers image classifier and its bad class:
python examples/pictures.py CLASSIFIER CLASS "What is this?" picture.png
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.guard import Guard
from promptguard.guard.environment import guard_of
from promptguard.score.image_classifier import load_image_classifier
from promptguard.vision.pictures import Pictures

if __name__ == "__main__":
    folder, harmful, question, path = sys.argv[1:]
    found, sampling = load_image_classifier(Path(folder)), ImageSampling(samples=1000, batch_size=50)
    smoothed = GaussianSmoothing(found.model, 0.25, harmful={found.labels.index(harmful)}, sampling=sampling)
    guard = Guard(guard_of(os.environ).certifier, images=Pictures(smoothed, found.size))
    kind, data = Path(path).suffix.strip("."), base64.b64encode(Path(path).read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
    content = [{"type": "text", "text": question}, picture]
    decision = guard.check([{"role": "user", "content": content}])
    sys.stdout.write(f"{decision.reason}: {[certificate.sentence() for certificate in decision.certificates]}\n")
