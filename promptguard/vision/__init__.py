"""Image classifiers whose smoothed label comes with a proof: noise, votes, radii, denoisers, ensembles, training.

The certifier itself is `promptguard.certify.smooth_image.GaussianSmoothing`; what is here are its parts. Images are
tensors without a batch dimension, models take batches of them and give logits. Sigmas and radii are in the units of
the image that the model is given, so a normalisation belongs inside the model (`promptguard.vision.models.Normalised`).
"""
