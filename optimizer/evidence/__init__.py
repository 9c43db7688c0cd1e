"""What measurements say, and how sure it is.

differences      trials as paired differences against identity
ranking          what a search compares trials by
surrogate        a model of the response over the search box, learnt from noisy trials
finalists        which trials are worth confirming, by that model
sequential_test  what fresh seeds say about a finalist: a paired, sequential test
race             which finalists get more seeds
images           how sure a difference is for other images
verdicts         what a confirmation found out, as it is stored and exported
own_rates        whether differences hold with each arm at a rate of its own
audit            whether a larger network ranks densities as the proxy did
apart            a density's start and its steps apart
advice           what to do about a verdict
baseline         whether identity is a healthy baseline
cautions         signs that differences mean little
"""
