_base_ = '../sge/faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py'
# every block of the backbone is computed again for its gradient: less memory, more time
model = dict(backbone=dict(with_cp=True))
