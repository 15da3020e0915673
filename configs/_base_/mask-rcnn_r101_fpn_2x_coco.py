# The plain detector, evaluated as the ones with attention: the baseline to compare them with.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py'
val_evaluator = dict(type='mmattn.CocoSizeMetric')
test_evaluator = dict(type='mmattn.CocoSizeMetric')
