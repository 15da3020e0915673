# The plain detector, evaluated as the ones with attention: the baseline to compare them with.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py'
val_evaluator = dict(type='mmattn.CocoSizeMetric')
test_evaluator = dict(type='mmattn.CocoSizeMetric')
