"""The networks that are trained: small ones of known families, and any by name.

proxies      a network from its description and densities, initialised
named        networks by name: torchvision's, timm's, the user's own
classifiers  VGG and ResNet
denoisers    DnCNN and NAFNet
scale_free   whether the scale of a network's weighted convolutions matters
depthwise    a faster gradient for wide depthwise kernels on a CPU
pointwise    an exact gradient for strided 1 x 1 kernels of few channels on a CPU
pixel_norm   layer normalisation over channels in fused kernels on a GPU
same_size    what depthwise and turned share: convolutions that keep their images' size
turned       large kernels on small images as an input gradient on a GPU
"""
