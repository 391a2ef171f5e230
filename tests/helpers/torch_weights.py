"""Random weights for modules of PyTorch."""


def randomize(module, seed):
    """Gives a module weights of a useful scale, and random batch-norm parameters and statistics; in evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            fan_in = layer.weight[0].numel()
            layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
            if layer.bias is not None:
                uniform(layer.bias, -0.5, 0.5)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            uniform(layer.weight, 0.5, 1.5)
            uniform(layer.bias, -0.5, 1.0)
            uniform(layer.running_mean, -0.5, 0.5)
            uniform(layer.running_var, 0.5, 2.0)
    return module.eval()
