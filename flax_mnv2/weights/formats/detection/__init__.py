"""Detectors of other libraries: TF Object Detection API's and mmdet's SSDLite on MobileNetV2."""
