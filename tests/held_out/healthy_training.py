"""Healthy programs, told apart by how they are trained and by their data."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from sklearn import datasets as sk
from torch import nn
from torch.nn.utils import parametrizations as par
from torch.utils import checkpoint as ckpt
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from held_out.base import DM, Classifier, Regressor, digits, dm, friedman, healthy, mlp, split, table


def pretrain(net, x, y, steps=150, lr=3e-3):
    opt = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    return net


@healthy("pretrained frozen backbone with BN in eval, new head", 0.85, 15)
def frozen(seed):
    data = digits(seed)
    x, _, y, _ = data
    body = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    pretrain(nn.Sequential(body, nn.Linear(64, 5)), x, y // 2)

    class M(Classifier):
        def __init__(self):
            super().__init__(nn.Linear(64, 10), 5e-3)
            self.body = body.requires_grad_(False)

        def train(self, mode=True):
            super().train(mode)
            self.body.eval()
            return self

        def forward(self, x):
            return self.net(self.body(x))

        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.lr)

    return M(), dm(data)


@healthy("LoRA adapters of rank 4 on a frozen net", 0.85, 20)
def lora(seed):
    data = digits(seed)
    x, _, y, _ = data
    base = mlp(64, 96, 96, 10)
    pretrain(base, x, (y + 1) % 10, 200)
    base.requires_grad_(False)

    class L(nn.Module):
        def __init__(self, lin):
            super().__init__()
            self.lin = lin
            self.a = nn.Parameter(torch.randn(4, lin.in_features) / 8)
            self.b = nn.Parameter(torch.zeros(lin.out_features, 4))

        def forward(self, x):
            return self.lin(x) + 2 * x @ self.a.T @ self.b.T

    net = nn.Sequential(*(L(m) if isinstance(m, nn.Linear) else m for m in base))
    return Classifier(net, 5e-3), dm(data)


@healthy("fine-tuning with discriminative rates, pretrained", 0.93, 8)
def finetune(seed):
    data = digits(seed)
    x, _, y, _ = data
    net = mlp(64, 64, 64, 10)
    pretrain(nn.Sequential(net[:4], nn.Linear(64, 5)), x, y // 2, 150)

    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.AdamW(
                [{"params": self.net[:4].parameters(), "lr": 1e-4}, {"params": self.net[4:].parameters(), "lr": 5e-3}],
                weight_decay=0.01,
            )

    return M(net), dm(data)


@healthy("99:1 imbalance with WeightedRandomSampler", 0.8, 15)
def imbalance(seed):
    x, y = sk.make_classification(
        3000, 20, n_informative=10, weights=[0.97], flip_y=0, class_sep=1.5, random_state=seed
    )
    a, b, c, d = split(x.astype("float32"), y, seed, strat=y)
    a, b, c, d = map(torch.as_tensor, (a, b, c, d))
    w = (1 / torch.bincount(c).float())[c]

    class D(DM):
        def train_dataloader(self):
            return DataLoader(self.train, 64, sampler=WeightedRandomSampler(w, len(w)))

    class M(Classifier):
        def validation_step(self, bt, i):
            pass

        def on_validation_epoch_end(self):
            p = self(b).argmax(1)
            self.log("val/score", ((p == d)[d == 1].float().mean() + (p == d)[d == 0].float().mean()) / 2)

    return M(mlp(20, 32, 2)), D(TensorDataset(a, c), TensorDataset(b, d))


@healthy("label smoothing + mixup in the step", 0.93, 15)
def mixup(seed):
    class M(Classifier):
        def training_step(self, b, i):
            x, y = b
            lam = float(np.random.beta(0.4, 0.4))
            p = torch.randperm(len(x))
            o = self(lam * x + (1 - lam) * x[p])
            return lam * F.cross_entropy(o, y, label_smoothing=0.1) + (1 - lam) * F.cross_entropy(
                o, y[p], label_smoothing=0.1
            )

    return M(mlp(64, 128, 10), 2e-3), dm(digits(seed))


@healthy("SGD with OneCycle", 0.93, 12)
def onecycle(seed):
    class M(Classifier):
        def configure_optimizers(self):
            o = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
            s = torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=self.trainer.estimated_stepping_batches)
            return [o], [{"scheduler": s, "interval": "step"}]

    return M(mlp(64, 64, 10)), dm(digits(seed))


@healthy("warm-up from exactly 0 over 100 steps", 0.93, 12)
def warm0(seed):
    class M(Classifier):
        def configure_optimizers(self):
            o = torch.optim.AdamW(self.parameters(), 3e-3)
            s = torch.optim.lr_scheduler.LambdaLR(o, lambda k: min(1.0, k / 100))
            return {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}}

    return M(mlp(64, 64, 10)), dm(digits(seed))


@healthy("LBFGS with closure on a small table", 0.9, 15)
def lbfgs(seed):
    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")

    d = table(sk.load_wine, seed)
    return M(mlp(13, 16, 3)), dm(d, 133)


@healthy("Adafactor", 0.9, 20)
def adafactor(seed):
    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adafactor(self.parameters(), lr=1e-2)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@healthy("tied auto-encoder (decoder uses encoder weight transposed)", 0.6, 20)
def tied(seed):
    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(nn.init.xavier_uniform_(torch.empty(24, 64)))
            self.b1 = nn.Parameter(torch.zeros(24))
            self.b2 = nn.Parameter(torch.zeros(64))

        def forward(self, x):
            return F.linear(F.elu(F.linear(x, self.w, self.b1)), self.w.T, self.b2)

        def training_step(self, b, i):
            return F.mse_loss(self(b[0]), b[0])

        def validation_step(self, b, i):
            self.log("val/score", 1 - F.mse_loss(self(b[0]), b[0]) / b[0].var(0).mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(), dm(digits(seed))


@healthy("spectral norm and weight norm", 0.93, 15)
def specnorm(seed):
    return Classifier(
        nn.Sequential(
            par.weight_norm(nn.Linear(64, 64)),
            nn.ReLU(),
            par.spectral_norm(nn.Linear(64, 64)),
            nn.ReLU(),
            nn.Linear(64, 10),
        ),
        2e-3,
    ), dm(digits(seed))


@healthy("complex-valued Fourier net", 0.9, 15)
def complexnet(seed):
    class C(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(40, 32, dtype=torch.cfloat) / 8)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            z = torch.fft.rfft2(x.view(-1, 8, 8), norm="ortho").flatten(1)
            return self.head((z @ self.w).abs())

    return Classifier(C(), 3e-3), dm(digits(seed))


@healthy("bf16 parameters (bf16-true)", 0.9, 15, precision="bf16-true")
def bf16(seed):
    class M(Classifier):
        def validation_step(self, b, i):
            self.log("val/score", (self(b[0]).argmax(1) == b[1]).float().mean())

    return M(mlp(64, 64, 10), 3e-3), dm(digits(seed))


@healthy("gradient checkpointing in residual blocks with dropout", 0.93, 10)
def checkpointed(seed):
    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.i = nn.Linear(64, 64)
            self.b = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 64))
                for _ in range(4)
            )
            self.o = nn.Linear(64, 10)

        def forward(self, x):
            x = self.i(x)
            for b in self.b:
                x = x + (ckpt.checkpoint(b, x, use_reentrant=False) if self.training else b(x))
            return self.o(x)

    return Classifier(N()), dm(digits(seed))


@healthy("iterable dataset without length, shuffle buffer", 0.9, 10)
def iterable(seed):
    x, xv, y, yv = digits(seed)

    class I(IterableDataset):
        def __iter__(self):
            for k in torch.randperm(len(x)).tolist():
                yield x[k], int(y[k])

    class D(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(I(), 32)

        def val_dataloader(self):
            return DataLoader(TensorDataset(xv, yv), 64)

    return Classifier(mlp(64, 64, 10), 2e-3), D()


@healthy("endless stream with max_steps", 0.85, -1, max_steps=600, val_check_interval=300)
def endless(seed):
    class I(IterableDataset):
        def __iter__(self):
            while True:
                c = int(torch.randint(3, ()))
                t = torch.linspace(0, 6.28, 32)
                yield (torch.sin((c + 1) * t + 6.28 * torch.rand(())) + 0.2 * torch.randn(32))[None], c

    class D(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(I(), 32)

        def val_dataloader(self):
            it = iter(I())
            s = [next(it) for _ in range(256)]
            return DataLoader(TensorDataset(torch.stack([a for a, _ in s]), torch.tensor([c for _, c in s])), 64)

    net = nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    return Classifier(net, 3e-3), D()


@healthy("two loaders at once: labelled and unlabelled (consistency)", 0.9, 15)
def combined(seed):
    x, xv, y, yv = digits(seed)

    class D(LightningDataModule):
        def train_dataloader(self):
            return CombinedLoader(
                {
                    "lab": DataLoader(TensorDataset(x[:400], y[:400]), 32, shuffle=True),
                    "unl": DataLoader(TensorDataset(x[400:]), 64, shuffle=True),
                },
                "max_size_cycle",
            )

        def val_dataloader(self):
            return [DataLoader(TensorDataset(xv, yv), 64)]

    class M(Classifier):
        def training_step(self, b, i):
            lx, ly = b["lab"]
            (u,) = b["unl"]
            with torch.no_grad():
                p = self(u).softmax(1)
            return F.cross_entropy(self(lx), ly) + 0.5 * F.mse_loss(self(u + 0.1 * torch.randn_like(u)).softmax(1), p)

    return M(mlp(64, 64, 10), 2e-3), D()


@healthy("variable-length text, padded, dict batch with strings and None", 0.85, 15)
def padded(seed):
    g = np.random.default_rng(seed)
    docs = []
    for k in range(1000):
        c = int(g.integers(2))
        n = int(g.integers(4, 20))
        p = np.ones(50)
        p[:10] = 3 if c else 1
        p[10:20] = 1 if c else 3
        docs.append((list(1 + g.choice(50, n, p=p / p.sum())), c))

    def col(b):
        n = max(len(t) for t, _ in b)
        ids = torch.zeros(len(b), n, dtype=torch.long)
        for r, (t, _) in enumerate(b):
            ids[r, : len(t)] = torch.tensor(t)
        return {
            "ids": ids,
            "mask": ids > 0,
            "label": torch.tensor([c for _, c in b], dtype=torch.float),
            "text": [" ".join(map(str, t)) for t, _ in b],
            "extra": None,
        }

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(51, 32, padding_idx=0)
            self.q = nn.Linear(32, 1)
            self.head = mlp(32, 32, 1)

        def forward(self, b):
            e = self.emb(b["ids"])
            a = self.q(e)[..., 0].masked_fill(~b["mask"], -1e9).softmax(1)
            return self.head((a[..., None] * e).sum(1))[:, 0]

        def training_step(self, b, i):
            return F.binary_cross_entropy_with_logits(self(b), b["label"])

        def validation_step(self, b, i):
            self.log("val/score", ((self(b) > 0).float() == b["label"]).float().mean(), batch_size=len(b["label"]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    return M(), DM(docs[:800], docs[800:], 32, collate_fn=col)


@healthy("torch.compile with eager backend", 0.93, 12)
def compiled(seed):
    return Classifier(torch.compile(mlp(64, 64, 10), backend="eager"), 2e-3), dm(digits(seed))


@healthy("manual optimization with accumulation and clipping", 0.93, 12)
def manual(seed):
    class M(Classifier):
        def __init__(self, net):
            super().__init__(net, 3e-3)
            self.automatic_optimization = False

        def training_step(self, b, i):
            o = self.optimizers()
            loss = F.cross_entropy(self(b[0]), b[1]) / 2
            self.manual_backward(loss)
            if (i + 1) % 2 == 0:
                self.clip_gradients(o, 1.0, "norm")
                o.step()
                o.zero_grad()
            return loss

    return M(mlp(64, 64, 10)), dm(digits(seed), 16)


@healthy("very small data: iris, 40 samples", 0.85, 60)
def tiny(seed):
    a, b, c, d = table(sk.load_iris, seed)
    return Classifier(mlp(4, 16, 3), 1e-2), dm((a[:40], b, c[:40], d), 8)


@healthy("20 % noisy labels, four classes", 0.8, 15)
def noisy(seed):
    x, y = sk.make_blobs(1000, 6, centers=4, cluster_std=2.0, random_state=seed)
    x = ((x - x.mean(0)) / x.std(0)).astype("float32")
    a, b, c, d = map(torch.as_tensor, split(x, y, seed))
    g = torch.Generator().manual_seed(seed)
    m = torch.rand(len(c), generator=g) < 0.2
    c = c.clone()
    c[m] = torch.randint(4, (int(m.sum()),), generator=g)
    return Classifier(mlp(6, 32, 4), 3e-3), dm((a, b, c, d))


@healthy("recommender: large-vocabulary embeddings, dot product, SparseAdam-like", 0.3, 20)
def recsys(seed):
    g = torch.Generator().manual_seed(seed)
    U, I = torch.randn(100, 4, generator=g), torch.randn(1000, 4, generator=g)
    u, i = torch.randint(100, (12000,), generator=g), (torch.rand(12000, generator=g) ** 3 * 1000).long()
    r = (U[u] * I[i]).sum(1) / 2 + 0.1 * torch.randn(12000, generator=g)
    x = torch.stack([u, i], 1)

    class M(Regressor):
        def __init__(self):
            super().__init__(None, 1e-2)
            self.u = nn.Embedding(100, 4)
            self.i = nn.Embedding(1000, 4)
            self.b = nn.Parameter(torch.zeros(()))
            [nn.init.normal_(e.weight, std=0.3) for e in (self.u, self.i)]

        def forward(self, x):
            return (self.u(x[:, 0]) * self.i(x[:, 1])).sum(1) + self.b

    return M(), dm((x[:10000], x[10000:], r[:10000], r[10000:]), 128)


@healthy("causal LM with packed strings, weight tying, z-loss, cosine", 0.25, 40)
def gpt(seed):
    text = " ".join(w for w in sk.load_iris().DESCR.split()) + " " + " ".join(sk.load_wine().DESCR.split())
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(c) for c in text])
    V = len(chars)
    chunks = ids[: len(ids) // 33 * 33].view(-1, 33)
    chunks = torch.cat([chunks, ids[16 : 16 + (len(ids) - 16) // 33 * 33].view(-1, 33)])

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(V, 48)
            nn.init.normal_(self.emb.weight, std=0.05)
            self.pos = nn.Parameter(torch.randn(32, 48) * 0.05)
            self.enc = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(48, 4, 128, dropout=0.1, batch_first=True, norm_first=True),
                2,
                enable_nested_tensor=False,
            )
            self.norm = nn.LayerNorm(48)

        def forward(self, t):
            T = t.shape[1]
            return (
                self.norm(
                    self.enc(
                        self.emb(t) + self.pos[:T],
                        mask=nn.Transformer.generate_square_subsequent_mask(T),
                        is_causal=True,
                    )
                )
                @ self.emb.weight.T
            )

        def training_step(self, b, i):
            o = self(b[0][:, :-1])
            return F.cross_entropy(o.flatten(0, 1), b[0][:, 1:].flatten()) + 1e-4 * o.logsumexp(-1).pow(2).mean()

        def validation_step(self, b, i):
            self.log("val/score", (self(b[0][:, :-1]).argmax(-1) == b[0][:, 1:]).float().mean())

        def configure_optimizers(self):
            o = torch.optim.AdamW(self.parameters(), 3e-3, betas=(0.9, 0.95), weight_decay=0.1)
            s = torch.optim.lr_scheduler.CosineAnnealingLR(o, self.trainer.estimated_stepping_batches, 5e-4)
            return {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}}

    k = len(chunks) * 9 // 10
    return M(), DM(TensorDataset(chunks[:k]), TensorDataset(chunks[k:]), 16)


@healthy("CTC over synthetic strips", 0.5, 25)
def ctc(seed):
    g = torch.Generator().manual_seed(seed)
    n = 600
    labs = torch.randint(1, 5, (n, 3), generator=g)
    x = torch.zeros(n, 12, 8)
    proto = torch.randn(5, 8, generator=g)
    for k in range(3):
        x[:, 4 * k + 1 : 4 * k + 3] = proto[labs[:, k]][:, None]
    x += 0.2 * torch.randn(x.shape, generator=g)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(8, 32, bidirectional=True, batch_first=True)
            self.out = nn.Linear(64, 5)

        def forward(self, x):
            return self.out(self.rnn(x)[0]).log_softmax(-1)

        def training_step(self, b, i):
            x, y = b
            n = len(x)
            return F.ctc_loss(self(x).transpose(0, 1), y, torch.full((n,), 12), torch.full((n,), 3))

        def validation_step(self, b, i):
            p = self(b[0]).argmax(-1)
            ok = [
                torch.equal(torch.tensor([t for t in torch.unique_consecutive(r).tolist() if t]), y)
                for r, y in zip(p, b[1])
            ]
            self.log("val/score", float(np.mean(ok)))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 5e-3)

    return M(), dm((x[:500], x[500:], labs[:500], labs[500:]))


@healthy("graph net: whole graph as one batch, masked nodes", 0.85, 60)
def gcn(seed):
    g = torch.Generator().manual_seed(seed)
    n = 300
    y = torch.arange(n) % 3
    A = (torch.rand(n, n, generator=g) < torch.where(y[:, None] == y, 0.06, 0.01)).float()
    A = ((A + A.T) > 0).float() + torch.eye(n)
    d = A.sum(1) ** -0.5
    A = A * d[:, None] * d
    x = F.one_hot(y, 3).float() + torch.randn(n, 3, generator=g) * 1.0
    x = torch.cat([x, torch.randn(n, 5, generator=g)], 1)
    mask = torch.rand(n, generator=g) < 0.5

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.l1, self.l2 = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x, A):
            return A @ self.l2(F.dropout(A @ self.l1(x), 0.3, self.training).relu())

        def training_step(self, b, i):
            x, A, y, m = b
            return F.cross_entropy(self(x, A)[m], y[m])

        def validation_step(self, b, i):
            x, A, y, m = b
            self.log("val/score", (self(x, A).argmax(1) == y)[~m].float().mean(), batch_size=1)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2, weight_decay=5e-4)

    ds = [(x, A, y, mask)]

    class D(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(ds, batch_size=None)

        def val_dataloader(self):
            return DataLoader(ds, batch_size=None)

    return M(), D()


@healthy("neural-ODE-like regressor with weight decay and ReduceLROnPlateau", 0.6, 30)
def plateau(seed):
    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.f, self.o = nn.Linear(10, 24), mlp(24, 48, 24, act=nn.Tanh), nn.Linear(24, 1)

        def forward(self, x):
            h = self.i(x)
            for _ in range(6):
                h = h + 0.25 * self.f(h)
            return self.o(h)

    class M(Regressor):
        def configure_optimizers(self):
            o = torch.optim.AdamW(self.parameters(), 3e-3)
            return {
                "optimizer": o,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=3),
                    "monitor": "val/loss",
                },
            }

    return M(N()), dm(friedman(seed))


@healthy("RL-like: REINFORCE on a bandit with baseline", 0.7, 10)
def bandit(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, 6, generator=g)
    W = torch.randn(6, 4, generator=g)
    best = (x @ W).argmax(1)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.pi = mlp(6, 32, 4)

        def training_step(self, b, i):
            x, y = b
            d = torch.distributions.Categorical(logits=self.pi(x))
            a = d.sample()
            r = (a == y).float()
            return -(d.log_prob(a) * (r - r.mean())).mean() - 0.01 * d.entropy().mean()

        def validation_step(self, b, i):
            self.log("val/score", (self.pi(b[0]).argmax(1) == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 5e-3)

    return M(), dm((x[:1600], x[1600:], best[:1600], best[1600:]))


@healthy("Barlow-like redundancy reduction", 0.75, 25)
def barlow(seed):
    x, xv, y, yv = digits(seed)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
            self.bn = nn.BatchNorm1d(32, affine=False)

        def training_step(self, b, i):
            v = b[0]
            a, c = (self.bn(self.net(v + 0.2 * torch.randn_like(v))) for _ in range(2))
            m = a.T @ c / len(v)
            return (m.diagonal() - 1).pow(2).sum() + 0.05 * (m - torch.diag(m.diagonal())).pow(2).sum()

        def validation_step(self, b, i):
            z, zt = F.normalize(self.net(b[0])), F.normalize(self.net(x))
            self.log("val/score", (y[(z @ zt.T).argmax(1)] == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return M(), DM(TensorDataset(x), TensorDataset(xv, yv), 128, drop_last=True)


@healthy("mixture density network", 0.0, 30)
def mdn(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1000, 1, generator=g) * 2 - 1
    y = torch.where(torch.rand(1000, generator=g) < 0.5, x[:, 0], -x[:, 0]) + 0.05 * torch.randn(1000, generator=g)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(1, 48, 9, act=nn.Tanh)

        def nll(self, b):
            w, m, s = self.net(b[0]).chunk(3, 1)
            c = torch.distributions.Normal(m, s.exp() + 1e-3)
            return -torch.logsumexp(w.log_softmax(1) + c.log_prob(b[1][:, None]), 1).mean()

        def training_step(self, b, i):
            return self.nll(b)

        def validation_step(self, b, i):
            self.log("val/score", -self.nll(b))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 5e-3)

    return M(), dm((x[:800], x[800:], y[:800], y[800:]))


@healthy("vector-quantised auto-encoder with straight-through", 0.5, 20)
def vqvae(seed):
    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = mlp(64, 64, 32), mlp(32, 64, 64)
            self.code = nn.Parameter(torch.randn(32, 8) * 0.3)

        def forward(self, x):
            z = self.enc(x).view(-1, 4, 8)
            d = torch.cdist(z, self.code[None].expand(len(z), -1, -1))
            e = self.code[d.argmin(-1)]
            q = z + (e - z).detach()
            return self.dec(q.flatten(1)), F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())

        def training_step(self, b, i):
            r, v = self(b[0])
            return F.mse_loss(r, b[0]) + v

        def validation_step(self, b, i):
            r, v = self(b[0])
            self.log("val/score", 1 - F.mse_loss(r, b[0]) / b[0].var(0).mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(), dm(digits(seed))


@healthy("hinge loss linear SVM on one-hot signs", 0.9, 15)
def svm(seed):
    x, xv, y, yv = table(sk.load_breast_cancer, seed)

    class M(Classifier):
        def loss(self, o, y):
            return (1 - o[:, 0] * (2 * y.float() - 1)).clamp(min=0).mean()

        def validation_step(self, b, i):
            self.log("val/score", ((self(b[0])[:, 0] > 0).long() == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05, weight_decay=1e-3)

    return M(nn.Linear(30, 1)), dm((x, xv, y, yv))


@healthy("images 0-255 normalised in the model; uint8 batches", 0.93, 12)
def uint8(seed):
    x, xv, y, yv = digits(seed)
    f = lambda v: (v * 255).round().byte().view(-1, 1, 8, 8)

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
            )
            self.register_buffer("mean", torch.tensor(78.0))
            self.register_buffer("std", torch.tensor(96.0))

        def forward(self, x):
            return self.net((x.float() - self.mean) / self.std)

    return Classifier(N(), 2e-3), dm((f(x), f(xv), y, yv))


@healthy("deep sets: sum of a set, permuted", 0.7, 25)
def deepsets(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1000, 10, 2, generator=g)
    y = (x[..., 0] * x[..., 1]).sum(1)
    y = (y - 2.5) / 0.7

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(2, 32, 32), mlp(32, 32, 1)

        def forward(self, x):
            return self.b(self.a(x).mean(1))

    return Regressor(N(), 5e-3), dm((x[:800], x[800:], y[:800], y[800:]))


@healthy("time series in natural order, no shuffle, forecasting", 0.8, 20)
def series(seed):
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(1300.0)
    s = torch.sin(t / 7) + 0.5 * torch.sin(t / 3.1) + 0.1 * torch.randn(1300, generator=g)
    w = s.unfold(0, 25, 1)
    x, y = w[:, :24], w[:, 24]
    return Regressor(nn.Sequential(mlp(24, 32, 1))), dm((x[:1000], x[1000:], y[:1000], y[1000:]), 32, shuffle=False)


@healthy("large-margin temperature: CLIP-like two towers, learned temperature", 0.8, 20)
def clip(seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2000, 6, generator=g)
    A, B = torch.randn(6, 20, generator=g), torch.randn(6, 12, generator=g)
    x, y = torch.tanh(z @ A), z @ B / 3

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(20, 64, 16), mlp(12, 64, 16)
            self.t = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        def logits(self, x, y):
            return self.t.exp().clamp(max=100) * F.normalize(self.a(x)) @ F.normalize(self.b(y)).T

        def training_step(self, b, i):
            l = self.logits(*b)
            k = torch.arange(len(l))
            return (F.cross_entropy(l, k) + F.cross_entropy(l.T, k)) / 2

        def validation_step(self, b, i):
            l = self.logits(*b)
            self.log("val/score", (l.argmax(1) == torch.arange(len(l))).float().mean())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 2e-3)

    return M(), dm((x[:1600], x[1600:], y[:1600], y[1600:]), 64)


@healthy("deep equal-width ReLU net, 10 layers with BN, no bias", 0.9, 15)
def deepbn(seed):
    L = [nn.Linear(64, 48)]
    for _ in range(10):
        L += [nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48, bias=False)]
    return Classifier(nn.Sequential(*L, nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10)), 2e-3), dm(digits(seed))


@healthy("Lightning idioms: shared step, lazy setup, batch transform hook, several schedulers", 0.9, 12)
def idioms(seed):
    x, xv, y, yv = digits(seed)

    class D(LightningDataModule):
        def setup(self, stage):
            self.a, self.b = TensorDataset(x * 16, y), TensorDataset(xv * 16, yv)

        def train_dataloader(self):
            return DataLoader(self.a, 32, shuffle=True)

        def val_dataloader(self):
            return DataLoader(self.b, 64)

        def on_after_batch_transfer(self, b, i):
            return b[0] / 8 - 1, b[1]

    class M(LightningModule):
        def __init__(self, hidden=64):
            super().__init__()
            self.save_hyperparameters()
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = mlp(64, self.hparams.hidden, 10)

        def shared(self, b, stage):
            o = self.net(b[0])
            l = F.cross_entropy(o, b[1])
            self.log(f"{stage}/loss", l, prog_bar=True)
            self.log(f"{stage}/score", (o.argmax(1) == b[1]).float().mean(), on_epoch=True)
            return l

        def training_step(self, b, i):
            return self.shared(b, "train")

        def validation_step(self, b, i):
            self.shared(b, "val")

        def configure_optimizers(self):
            o = torch.optim.RAdam(self.parameters(), 3e-3)
            return [o], [torch.optim.lr_scheduler.StepLR(o, 8, 0.3)]

    return M(), D()
