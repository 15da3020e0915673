import mmattn  # noqa: F401  before any mm* package: it offers the operators that mmcv may lack
