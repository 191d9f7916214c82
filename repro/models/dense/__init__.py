"""Detectors and segmenters over four-stage backbones, in the layout and with the conventions of the released ones.

=================  ==================================================================================================
``images``         the toolkits' test pipelines: an image file to a normalised batch of one
``fpn``            the feature pyramid that both models have
``mask_rcnn``      Mask R-CNN, MMDetection's standard COCO configuration
``semantic_fpn``   Semantic FPN, MMSegmentation's head
``backbones``      which model, stages and output norms a row's detector has
``layouts``        the keys of a backbone in its family's downstream code
``efficientformer``, ``swin``   what those families' downstream code computes otherwise than timm
``whole``          both models as a spec's builder takes them, for counting
=================  ==================================================================================================

Nothing here is imported by ``repro.models``: counts need none of it.
"""
