"""Images, from their sources to arrays that training reads.

bank      prepared images on disk, memory-mapped and fingerprinted
splits    which items are trained on and which are held out
sources   what identifies source files
images    image files as pixels
patches   patches of photographs for denoising
cifar100, div2k, photos, folder
          the data sources, each ending in a bank
"""
