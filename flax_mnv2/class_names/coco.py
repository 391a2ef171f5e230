"""COCO's names of things, which no tensor has: cocodataset.org, ``instances_val2017.json``."""

from __future__ import annotations

_BY_ID = (  # from 1 to 90; ten ids are of nothing
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


def coco_labels(count: int) -> dict[int, str]:
    """Returns names by class for 90 classes, COCO's ids less 1, or for 80, those that there are; else nothing."""
    by_id = _BY_ID.split(",")
    if count == len(by_id):
        return {index: name or f"N/A {index + 1}" for index, name in enumerate(by_id)}
    names = [name for name in by_id if name]
    return dict(enumerate(names)) if count == len(names) else {}
