"""Faults written after the first were met, each with its twin."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from held_out.base import DM, Classifier, Regressor, digits, dm, faulty, friedman, mlp


@faulty("softmax over time instead of keys: attention over the batch", "batch_mixing")
def attn_batch(bug, seed):
    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.i = nn.Linear(8, 32)
            self.a = nn.MultiheadAttention(32, 2, batch_first=not bug)
            self.o = nn.Linear(32, 10)

        def forward(self, x):
            h = self.i(x.view(-1, 8, 8))
            h = h + self.a(h, h, h)[0]
            return self.o(h.mean(1))

    return Classifier(N(), 2e-3), dm(digits(seed))


@faulty("labels from 1 shifted wrongly: clamp(max=8) merges two classes", "merged", 10)
def merged(bug, seed):
    x, xv, y, yv = digits(seed)
    return Classifier(mlp(64, 64, 10), 2e-3), dm((x, xv, y.clamp(max=5) if bug else y, yv))


@faulty("BatchNorm momentum 0: statistics never follow", "stuck_statistics")
def bn_momentum(bug, seed):
    return Classifier(
        nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=0.0 if bug else 0.1), nn.ReLU(), nn.Linear(64, 10)
        ),
        2e-3,
    ), dm(digits(seed))


@faulty("ReLU after the regression head", "target_out_of_range head_clipped", 25)
def relu_head(bug, seed):
    return Regressor(mlp(10, 32, 1, end=[nn.ReLU()] if bug else []), 5e-3), dm(friedman(seed))


@faulty("sigmoid on a 10-class head under cross-entropy", "target_out_of_range softmax_twice", 10)
def sigmoid_ce(bug, seed):
    return Classifier(mlp(64, 64, 10, end=[nn.Sigmoid()] if bug else []), 1e-3), dm(digits(seed))


@faulty("L2 penalty with factor 100 in the loss", "penalty_dominates")
def penalty(bug, seed):
    class M(Classifier):
        def training_step(self, b, i):
            return super().training_step(b, i) + (100.0 if bug else 1e-4) * sum(
                p.pow(2).sum() for p in self.parameters()
            )

    return M(mlp(64, 64, 10), 2e-3), dm(digits(seed))


@faulty("one sample repeated: index bug in the data set", "degenerate_data")
def one_item(bug, seed):
    x, xv, y, yv = digits(seed)

    class D(Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            i = i % 40 if bug else i
            return x[i], y[i]

    return Classifier(mlp(64, 64, 10), 2e-3), DM(D(), TensorDataset(xv, yv))


@faulty("MSE on class numbers in every output", "class_regression", 10)
def class_numbers(bug, seed):
    class M(Classifier):
        def loss(self, o, y):
            return F.mse_loss(o, y.float()[:, None].expand_as(o)) if bug else F.cross_entropy(o, y)

    return M(mlp(64, 64, 10), 2e-3), dm(digits(seed))


@faulty("learning rate of Adam 0.5", "lr_too_high")
def adam_half(bug, seed):
    return Classifier(mlp(64, 64, 64, 10), 0.5 if bug else 2e-3), dm(digits(seed))


@faulty("targets shuffled inside the collate function", "no_label_signal")
def collate(bug, seed):
    def col(b):
        x, y = torch.stack([v[0] for v in b]), torch.stack([v[1] for v in b])
        return x, y[torch.randperm(len(y))] if bug else y

    class D(DM):
        def val_dataloader(self):
            return DataLoader(self.val, 64)

    a, b, c, d = digits(seed)
    return Classifier(mlp(64, 64, 10), 2e-3), D(TensorDataset(a, c), TensorDataset(b, d), 32, collate_fn=col)
