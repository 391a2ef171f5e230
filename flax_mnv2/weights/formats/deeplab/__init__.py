"""DeepLab of other libraries with a MobileNetV2: names and networks."""
