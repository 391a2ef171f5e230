"""TensorFlow's world: TF-slim, TF DeepLab, TF Object Detection, Keras, TFLite: names and networks."""
