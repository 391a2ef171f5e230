"""Detectors of other libraries: the TF Object Detection API's and mmdet's SSDLite on MobileNetV2.

A TFLite file of one, such as Google's ``mobile_object_localizer``, has its place here, beside a reader of TFLite.
"""
