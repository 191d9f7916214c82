"""ImageNet accuracy of many checkpoints in one pass over the images.

The rooms, in the order in which data goes through them:

=================  ==================================================================================================
``datasets``       finds the images and their targets in four layouts, and reads one image's bytes
``preprocess``     timm's evaluation transform, shared between the models that have a part of it in common
``engine``         what to evaluate, how, and the loop that gathers and keeps the predictions
``executor``       where the work runs: one child process with its decoders, or (``ray_executor``) a Ray cluster
``worker``         what runs there: models built, folded and run on batches
``predictions``    per-image predictions: kept while the run lasts, exported at its end
``statistics``     top-1, top-5, Wilson intervals, McNemar's test
=================  ==================================================================================================

Nothing here imports torch, timm or PIL at module level except ``worker``, which only a child process imports, so that
a command that merely looks up predictions starts in a moment.
"""
