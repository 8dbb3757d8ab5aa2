"""Labels of frames from k-means over MFCC or hidden states: HuBERT's targets."""
