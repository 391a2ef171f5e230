"""Our names of torchvision's and timm's augmentations."""

NAMES = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}
TIMM_NAMES = {name: NAMES[name] for name in NAMES if name not in ("Identity", "TranslateX", "TranslateY")} | {
    "Invert": "invert",
    "SolarizeAdd": "solarize_add",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}
