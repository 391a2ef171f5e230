"""Object detection with SSDLite on MobileNetV2."""
