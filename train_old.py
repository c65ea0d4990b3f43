"""Trains a model on its own: an old model, or a new one without compatibility for comparison.

torchrun --nproc_per_node=8 train_old.py configs/f128_r18_softmax_class30.py
python train_old.py configs/f128_r18_softmax_class30.py lr=0.05 batch_size=64
"""

from bct.method import Method
from bct.train import main

if __name__ == "__main__":
    main(Method)
