"""Images, from their sources to arrays that training reads.

bank      prepared images on disk, memory-mapped and fingerprinted
splits    which items are trained on and which are held out
sources   what identifies source files
listing   which files of a folder are images, and what is passed over
metadata  image files without what their pixels do not depend on
images    image files as pixels
patches   patches of photographs for denoising
cifar100, div2k, photos, folder
          the data sources, each ending in a bank
given     data of the user's own: what their function returns
"""
