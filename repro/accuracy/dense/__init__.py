"""Detection on COCO and segmentation on ADE20K, image by image, resumable.

=================  ==================================================================================================
``datasets``       finds COCO's and ADE20K's images and annotations, and says what does not fit
``results``        what a model said about each image: kept in files that are whole or absent
``metrics``        box and mask AP by COCO's evaluator; mIoU as MMSegmentation computes it
``engine``         which images are left, and where the work runs: this process, several, or a Ray cluster
``worker``         what runs there: the model, its pipeline, and one image's result
=================  ==================================================================================================

Only ``worker`` imports torch, and only when a model is built.
"""
