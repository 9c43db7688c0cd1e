"""Measures densities by training proxies.

weighted_conv  the operator: weighted convolutions, conversion, folding
classifiers    VGG and ResNet proxies
denoisers      DnCNN and NAFNet proxies
proxies        a proxy from its description and densities, initialised
bank           prepared images on disk, memory-mapped and fingerprinted
splits         which items are trained on and which are held out
sources        what identifies source files
images         image files as pixels
patches        patches of photographs for denoising
cifar100, div2k, photos, folder
               the data sources, each ending in a bank
seeds          random generators by purpose
preparation    from a study's configuration to bank, task and recipe
devices        which device, and how it is set up
baselines      the best that is linear: what a network has to beat
tasks          data + proxy + loss + metric on a device
recipe         what is trained and how: recipe, job, measurement, schedules
member         one job in training
training       the one training loop: members side by side
capture        steps of a member on a GPU without the host
depthwise      a faster gradient for wide depthwise kernels on a CPU
pointwise      an exact gradient for strided 1 x 1 kernels of few channels on a CPU
packing        how many members a device trains best
worker         the loop: claim, train, look for more
pack           claimed jobs in training, and what becomes of each
shift          a worker's dealings with a storage that may go away
heartbeat      the thread that keeps a worker's leases
notice         signals that end a worker, and how long it may take
checkpoint     jobs in training on disk, for whoever goes on with them
spool          measurements that wait on disk for the database
durable        files that are there whole or not at all
verification   checks of what a preset promises
"""
