"""``config.initializer`` → what the kernels of convolutions are drawn from."""

import flax.linen as nn

# None: normal, of config.model.initializer_range. He's fan-out rule is torchvision's; its depthwise kernels count all
# channels as outputs, as PyTorch does.
INITIALIZERS = {"normal": None, "fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal")}
