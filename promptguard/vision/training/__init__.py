"""Training for smoothing, as recipes: what a recipe adds is the loss of one batch. One file and one line per method.

No certificate depends on how a model was trained. Recipes only decide how much is certified.
"""

from __future__ import annotations

RECIPES = {
    "gaussian": "promptguard.vision.training.gaussian:GaussianAugmentation",
    "smoothadv": "promptguard.vision.training.smoothadv:SmoothAdv",
    "consistency": "promptguard.vision.training.consistency:Consistency",
    "macer": "promptguard.vision.training.macer:Macer",
    "smoothmix": "promptguard.vision.training.smoothmix:SmoothMix",
    "drt": "promptguard.vision.training.drt:DiversityRegularised",
    "adversarial": "promptguard.vision.training.adversarial:AdversarialTraining",
}
