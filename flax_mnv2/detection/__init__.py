"""Boxes: anchors, codes, matching, losses, suppression; functions of arrays that a detector is made of."""
