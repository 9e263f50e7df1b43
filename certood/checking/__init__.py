"""A checker of certificates that shares nothing with what made them: it imports neither torch nor `certood.analysis`.

It reads the exported network (ONNX), recomputes a backward linear bound from the slopes in a certificate in float64 with every
rounding counted outwards, and compares decimals. To read in this order: `steps` (bounds of one step), `network` (steps one after
the other), `reading`, `operators` and `network_file` (the ONNX file as such steps), `linear_bounds` (bounds of rows of logits),
`scores` (the claim), `certificates` (the file), `properties` (VNN-LIB beside it), `folder` (a whole export).
"""
