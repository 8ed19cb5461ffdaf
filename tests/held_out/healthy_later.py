"""Healthy programs written after the first were met."""

import copy

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from held_out.base import DM, Classifier, Regressor, digits, dm, friedman, healthy, mlp


@healthy("BYOL: predictor, EMA target, no negatives", 0.7, 20)
def byol(seed):
    x, xv, y, yv = digits(seed)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
            self.t = copy.deepcopy(self.f).requires_grad_(False)
            self.p = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))

        def training_step(self, b, i):
            a, c = (b[0] + 0.15 * torch.randn_like(b[0]) for _ in range(2))
            with torch.no_grad():
                ta, tc = self.t(a), self.t(c)
            return 2 - (F.cosine_similarity(self.p(self.f(a)), tc) + F.cosine_similarity(self.p(self.f(c)), ta)).mean()

        def on_train_batch_end(self, *a):
            for p, q in zip(self.t.parameters(), self.f.parameters()):
                p.data.lerp_(q.data, 0.02)

        def validation_step(self, b, i):
            z, zt = F.normalize(self.f(b[0])), F.normalize(self.f(x))
            self.log("val/score", (y[(z @ zt.T).argmax(1)] == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.AdamW([*self.f.parameters(), *self.p.parameters()], 1e-3)

    return M(), DM(TensorDataset(x), TensorDataset(xv, yv), 64, drop_last=True)


@healthy("DQN-like: TD loss with target net and replay", 0.0, 10)
def dqn(seed):
    g = torch.Generator().manual_seed(seed)
    s = torch.randn(2000, 4, generator=g)
    a = torch.randint(3, (2000,), generator=g)
    s2 = s + 0.1 * torch.randn(2000, 4, generator=g)
    r = (s[:, 0] * (a == 0) - s[:, 1] * (a == 1)).float()
    done = torch.rand(2000, generator=g) < 0.1

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.q = mlp(4, 64, 3)
            self.t = copy.deepcopy(self.q)

        def training_step(self, b, i):
            s, a, r, s2, d = b
            if i % 50 == 0:
                self.t.load_state_dict(self.q.state_dict())
            with torch.no_grad():
                y = r + 0.5 * self.t(s2).max(1).values * (~d)
            return F.smooth_l1_loss(self.q(s).gather(1, a[:, None])[:, 0], y)

        def validation_step(self, b, i):
            self.log("val/score", 1.0)

        def configure_optimizers(self):
            return torch.optim.Adam(self.q.parameters(), 1e-3)

    d = TensorDataset(s, a, r, s2, done)
    return M(), DM(d, d, 64)


@healthy("dice + CE segmentation with rare foreground", 0.0, 10)
def dice(seed):
    g = torch.Generator().manual_seed(seed)
    n = 300
    x = torch.randn(n, 1, 16, 16, generator=g) * 0.4
    m = torch.zeros(n, 16, 16)
    for k in range(n):
        i, j = torch.randint(2, 12, (2,), generator=g).tolist()
        m[k, i : i + 3, j : j + 3] = 1
    x = x + m[:, None]

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 12, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(12, 12, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(12, 1, 1),
            )

        def training_step(self, b, i):
            o = self.net(b[0])[:, 0]
            p = o.sigmoid()
            d = 1 - (2 * (p * b[1]).sum() + 1) / (p.sum() + b[1].sum() + 1)
            return d + F.binary_cross_entropy_with_logits(o, b[1])

        def validation_step(self, b, i):
            self.log("val/score", (((self.net(b[0])[:, 0] > 0) & (b[1] > 0)).sum() / b[1].sum()))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    return M(), dm((x[:240], x[240:], m[:240], m[240:]), 16)


@healthy("custom batch sampler by length", 0.8, 15)
def sampler(seed):
    x, xv, y, yv = digits(seed)

    class S(Sampler):
        def __iter__(self):
            o = x.sum(1).argsort().tolist()
            bs = [o[i : i + 32] for i in range(0, len(o), 32)]
            for k in torch.randperm(len(bs)).tolist():
                yield bs[k]

        def __len__(self):
            return -(-len(x) // 32)

    class D(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(x, y), batch_sampler=S())

        def val_dataloader(self):
            return DataLoader(TensorDataset(xv, yv), 64)

    return Classifier(mlp(64, 64, 10), 2e-3), D()


@healthy("gaussian NLL with learned variance", 0.5, 25)
def gnll(seed):
    class M(Regressor):
        def loss(self, o, y):
            return F.gaussian_nll_loss(o[:, 0], y, F.softplus(o[:, 1]) + 1e-3)

        def validation_step(self, b, i):
            self.log("val/score", 1 - F.mse_loss(self(b[0])[:, 0], b[1]) / b[1].var())

    return M(mlp(10, 48, 2), 3e-3), dm(friedman(seed))


@healthy("hierarchical: two heads, one conditioned on the other, tuple output", 0.8, 15)
def hierarchy(seed):
    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = mlp(64, 64, 64)
            self.c = nn.Linear(64, 2)
            self.f = nn.Linear(66, 10)

        def forward(self, x):
            h = self.b(x).relu()
            c = self.c(h)
            return c, self.f(torch.cat([h, c.softmax(1)], 1))

    class M(Classifier):
        def training_step(self, b, i):
            c, f = self.net(b[0])
            return 0.3 * F.cross_entropy(c, b[1] % 2) + F.cross_entropy(f, b[1])

        def validation_step(self, b, i):
            self.log("val/score", (self.net(b[0])[1].argmax(1) == b[1]).float().mean())

    return M(N()), dm(digits(seed))


@healthy("pseudo-Huber on log targets, house-price-like", 0.5, 30)
def logtarget(seed):
    a, b, c, d = friedman(seed)
    c, d = (c * 0.4 + 12), (d * 0.4 + 12)

    class M(Regressor):
        def __init__(self, n):
            super().__init__(n, 3e-3)
            self.net[-1].bias.data.fill_(12.0)

    return M(mlp(10, 64, 1)), dm((a, b, c, d))


@healthy("gradient penalty in a classifier (double backward)", 0.9, 12)
def gradpen(seed):
    class M(Classifier):
        def training_step(self, b, i):
            x = b[0].clone().requires_grad_()
            l = F.cross_entropy(self(x), b[1])
            (g,) = torch.autograd.grad(l, x, create_graph=True)
            return l + 0.1 * g.pow(2).sum()

    return M(mlp(64, 64, 10, act=nn.SiLU), 2e-3), dm(digits(seed))


@healthy("state-space/RNN cell loop with truncated BPTT inside", 0.8, 15)
def cell(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(900, 20, 3, generator=g)
    y = (x[:, -8:, 0].sum(1) > 0).long()

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.o = nn.LSTMCell(3, 24), nn.Linear(24, 2)

        def forward(self, x):
            h = c = x.new_zeros(len(x), 24)
            for t in range(x.shape[1]):
                h, c = self.c(x[:, t], (h, c))
                if t == 9:
                    h, c = h.detach(), c.detach()
            return self.o(h)

    return Classifier(N(), 5e-3), dm((x[:700], x[700:], y[:700], y[700:]))


@healthy("mean teacher with EMA weights and noisy student", 0.9, 15)
def meanteacher(seed):
    class M(Classifier):
        def __init__(self):
            super().__init__(mlp(64, 64, 10), 2e-3)
            self.t = copy.deepcopy(self.net).requires_grad_(False)

        def training_step(self, b, i):
            x, y = b
            o = self.net(x + 0.1 * torch.randn_like(x))
            return F.cross_entropy(o, y) + F.mse_loss(o.softmax(1), self.t(x).softmax(1))

        def on_train_batch_end(self, *a):
            with torch.no_grad():
                torch._foreach_lerp_(list(self.t.parameters()), list(self.net.parameters()), 0.05)

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), 2e-3)

    return M(), dm(digits(seed))


@healthy("supervised contrastive loss", 0.85, 15)
def supcon(seed):
    class M(Classifier):
        def training_step(self, b, i):
            z = F.normalize(self.net(b[0]))
            s = z @ z.T / 0.2
            e = torch.eye(len(z), dtype=torch.bool)
            s = s.masked_fill(e, -1e9)
            pos = (b[1][:, None] == b[1]) & ~e
            lp = s - s.logsumexp(1, keepdim=True)
            n = pos.sum(1)
            return -((lp * pos).sum(1)[n > 0] / n[n > 0]).mean()

        def validation_step(self, b, i):
            z = F.normalize(self.net(b[0]))
            t = F.normalize(self.net(TR[0]))
            self.log("val/score", (TR[1][(z @ t.T).argmax(1)] == b[1]).float().mean())

    d = digits(seed)
    TR = d[0], d[2]
    return M(mlp(64, 64, 16)), dm(d, 64, drop_last=True)  # three samples have no pair
