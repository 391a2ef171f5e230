"""Images with boxes, from COCO's JSON, VOC's XML and YOLO's text: one reader each, one builder for all."""
