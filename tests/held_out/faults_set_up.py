"""Faults of the loss, the optimizer, the data and the initial weights, each with its twin."""

import copy
import warnings

import torch
import torch.nn.functional as F
from sklearn import datasets as sk
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from held_out.base import DM, Classifier, Regressor, digits, dm, faulty, friedman, mlp, split, table


@faulty("softmax over the batch dimension, NLL on its log", "batch_mixing loss_not_per_sample")
def softmax_dim0(bug, seed):
    class M(Classifier):
        def loss(self, o, y):
            return F.nll_loss(torch.log_softmax(o, 0 if bug else 1), y)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("NLLLoss on raw logits", "loss_unbounded")
def nll_raw(bug, seed):
    net = mlp(64, 64, 10)

    class M(Classifier):
        def loss(self, o, y):
            return F.nll_loss(o if bug else o.log_softmax(1), y)

    return M(net), dm(digits(seed))


@faulty("BCEWithLogits after a sigmoid", "softmax_twice target_out_of_range")
def bce_twice(bug, seed):
    a, b, c, d = table(sk.load_breast_cancer, seed)

    class M(Classifier):
        def loss(self, o, y):
            return F.binary_cross_entropy_with_logits(o[:, 0], y.float())

        def validation_step(self, bt, i):
            self.log("val/score", ((self(bt[0])[:, 0] > (0.5 if bug else 0)).long() == bt[1]).float().mean())

    return M(mlp(30, 32, 1, end=[nn.Sigmoid()] if bug else [])), dm((a, b, c, d))


@faulty("regression (B,1) against (B,) with L1", "loss_not_per_sample")
def broadcast_l1(bug, seed):
    class M(Regressor):
        def loss(self, o, y):
            warnings.simplefilter("ignore")
            return F.smooth_l1_loss(o if bug else o.squeeze(-1), y)

    return M(mlp(10, 32, 1), 5e-3), dm(friedman(seed))


@faulty("argmax before the loss: not differentiable", "loss_detached no_gradient", 5)
def argmax_forward(bug, seed):
    class M(Classifier):
        def loss(self, o, y):
            if bug:
                return F.mse_loss(o.argmax(1).float().requires_grad_(), y.float())
            return F.cross_entropy(o, y)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("features detached by mistake: backbone gets no gradient", "no_gradient")
def detached(bug, seed):
    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 10)

        def forward(self, x):
            h = self.body(x)
            return self.head(h.detach() if bug else h)

    return Classifier(N(), 2e-3), dm(digits(seed))


@faulty("layers in a plain python list", "unregistered")
def pylist(bug, seed):
    class N(nn.Module):
        def __init__(self):
            super().__init__()
            ls = [nn.Linear(64, 64), nn.Linear(64, 64)]
            self.ls = ls if bug else nn.ModuleList(ls)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            for l in self.ls:
                x = l(x).relu()
            return self.head(x)

    return Classifier(N()), dm(digits(seed))


@faulty("optimizer over the head only, though all are to be trained", "optimizer_params")
def head_only(bug, seed):
    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(self.net[2].parameters() if bug else self.parameters(), 2e-3)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("optimizer built over another copy of the model", "optimizer_params")
def other_model(bug, seed):
    class M(Classifier):
        def __init__(self, net):
            super().__init__(net)
            object.__setattr__(self, "spare", copy.deepcopy(net))

        def configure_optimizers(self):
            return torch.optim.Adam((self.spare if bug else self.net).parameters(), 2e-3)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("weight decay 1.0 with SGD", "decay_dominates")
def decay(bug, seed):
    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=1.0 if bug else 1e-4)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("momentum .99 with lr 1", "lr_too_high")
def momentum(bug, seed):
    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1.0 if bug else 0.02, momentum=0.99 if bug else 0.9)

    return M(mlp(64, 64, 64, 10)), dm(digits(seed))


@faulty("sorted labels, small batches, no shuffle: two classes of a table", "sorted_order")
def sorted_table(bug, seed):
    a, b, c, d = table(sk.load_breast_cancer, seed)
    o = c.argsort(stable=True)
    return Classifier(mlp(30, 32, 2), 5e-3), dm((a[o], b, c[o], d), 8, shuffle=not bug)


@faulty("train transform destroys the signal: noise of sigma 5", "no_label_signal cannot_learn", 12)
def noise_transform(bug, seed):
    x, xv, y, yv = digits(seed)

    class T(Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return (x[i] + (8.0 if bug else 0.1) * torch.randn(64)), y[i]

    return Classifier(mlp(64, 64, 10)), DM(T(), TensorDataset(xv, yv))


@faulty("validation data inside training data", "split_overlap")
def overlap(bug, seed):
    a, b, c, d = table(sk.load_wine, seed)
    if bug:
        a, c = torch.cat([a, b]), torch.cat([c, d])
    return Classifier(mlp(13, 16, 3), 5e-3), dm((a, b, c, d), 16)


@faulty("validation not standardised, training is", "split_shift")
def val_scale(bug, seed):
    x, y = sk.load_wine(return_X_y=True)
    a, b, c, d = split(x, y, seed, strat=y)
    m, s = a.mean(0), a.std(0)
    a = (a - m) / s
    b = b if bug else (b - m) / s
    return Classifier(mlp(13, 16, 3), 1e-2), dm(
        tuple(torch.as_tensor(v) for v in (a.astype("float32"), b.astype("float32"), c, d)), 16
    )


@faulty("dropout .95 on every layer", "over_regularized")
def dropout(bug, seed):
    p = 0.98 if bug else 0.1
    return Classifier(
        nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 10)
        )
    ), dm(digits(seed))


@faulty("ReLU on the logits", "head_clipped", 15)
def relu_logits(bug, seed):
    return Classifier(mlp(64, 64, 10, end=[nn.ReLU()] if bug else [])), dm(digits(seed))


@faulty("all-zero weights", "zero_gradient symmetric_init constant_output")
def zeros(bug, seed):
    n = mlp(64, 64, 10)
    if bug:
        [nn.init.zeros_(p) for p in n.parameters()]
    return Classifier(n), dm(digits(seed))


@faulty("tanh saturated by init N(0, 3)", "saturation bad_init init_loss")
def tanh_sat(bug, seed):
    n = mlp(64, 128, 128, 10, act=nn.Tanh)
    if bug:
        for m in n[:-1]:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=3.0)
    return Classifier(n), dm(digits(seed))


@faulty("loss reduction sum with the rate of a mean", "loss_summed lr_too_high")
def sum_loss(bug, seed):
    class M(Classifier):
        def loss(self, o, y):
            return F.cross_entropy(o, y, reduction="sum" if bug else "mean")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    return M(mlp(64, 64, 10)), dm(digits(seed), 64)


@faulty("exponential decay per step as if per epoch: lr gone at once", "schedule_shape")
def decay_lr(bug, seed):
    class M(Classifier):
        def configure_optimizers(self):
            o = torch.optim.Adam(self.parameters(), 2e-3)
            return {
                "optimizer": o,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
                    "interval": "step" if bug else "epoch",
                },
            }

    return M(mlp(64, 64, 10)), dm(digits(seed))
