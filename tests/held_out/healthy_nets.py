"""Healthy programs, told apart by their nets and losses."""

import copy
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn import datasets as sk
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from held_out.base import DM, Classifier, Regressor, digits, dm, friedman, healthy, mlp, split


@healthy("vision transformer of patches, AdamW, warm-up+cosine", 0.93, 30)
def vit(seed):
    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(1, 48, 2, 2)
            self.cls = nn.Parameter(torch.zeros(1, 1, 48))
            self.pos = nn.Parameter(torch.randn(1, 17, 48) * 0.02)
            layer = nn.TransformerEncoderLayer(
                48, 4, 96, dropout=0.1, batch_first=True, norm_first=True, activation="gelu"
            )
            self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(48)
            self.head = nn.Linear(48, 10)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            x = self.embed(x.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
            return self.head(self.norm(self.enc(x))[:, 0])

    class M(Classifier):
        def configure_optimizers(self):
            opt = torch.optim.AdamW(self.parameters(), 2e-3, weight_decay=0.05)
            total = self.trainer.estimated_stepping_batches
            sch = torch.optim.lr_scheduler.LambdaLR(
                opt, lambda s: min((s + 1) / 50, 0.5 * (1 + math.cos(math.pi * min(1, s / total))))
            )
            return {"optimizer": opt, "lr_scheduler": {"scheduler": sch, "interval": "step"}}

    return M(ViT()), dm(digits(seed), 64)


@healthy("U-net denoising auto-encoder", 0.6, 8)
def unet(seed):
    class U(nn.Module):
        def __init__(self):
            super().__init__()
            c = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o), nn.SiLU())
            self.a, self.b, self.c, self.d = c(1, 16), c(16, 32), c(48, 16), nn.Conv2d(16, 1, 1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(F.max_pool2d(a, 2))
            return self.d(self.c(torch.cat([a, F.interpolate(b, scale_factor=2.0)], 1)))

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = U()

        def training_step(self, batch, i):
            x = batch[0].view(-1, 1, 8, 8)
            return F.l1_loss(self.net(x + 0.3 * torch.randn_like(x)), x)

        def validation_step(self, batch, i):
            x = batch[0].view(-1, 1, 8, 8)
            n = x + 0.3 * torch.randn_like(x)
            self.log("val/score", 1 - F.mse_loss(self.net(n), x) / F.mse_loss(n, x))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(), dm(digits(seed))


@healthy("GRU seq2seq with teacher forcing, reversing strings", 0.8, 25)
def seq2seq(seed):
    g = torch.Generator().manual_seed(seed)
    src = torch.randint(2, 12, (1500, 6), generator=g)
    tgt = src.flip(1)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(12, 24)
            self.enc = nn.GRU(24, 96, batch_first=True)
            self.dec = nn.GRU(24, 96, batch_first=True)
            self.out = nn.Linear(96, 12)

        def forward(self, s, t):
            _, h = self.enc(self.emb(s))
            inp = torch.cat([torch.ones_like(t[:, :1]), t[:, :-1]], 1)
            return self.out(self.dec(self.emb(inp), h)[0])

        def training_step(self, b, i):
            return F.cross_entropy(self(*b).flatten(0, 1), b[1].flatten())

        def validation_step(self, b, i):
            self.log("val/score", (self(*b).argmax(-1) == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    return M(), dm((src[:1200], src[1200:], tgt[:1200], tgt[1200:]), 64)


@healthy("mixture of experts with load-balance loss, top-1 routing", 0.93, 15)
def moe(seed):
    class MoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = nn.Linear(64, 32)
            self.gate = nn.Linear(32, 4, bias=False)
            self.experts = nn.ModuleList(mlp(32, 48, 32) for _ in range(4))
            self.out = nn.Linear(32, 10)

        def forward(self, x):
            h = self.inp(x).relu()
            p = self.gate(h).softmax(-1)
            v, i = p.max(-1)
            y = torch.zeros_like(h)
            for k, e in enumerate(self.experts):
                m = i == k
                if m.any():
                    y[m] = e(h[m]) * v[m, None]
            self.aux = 4 * (F.one_hot(i, 4).float().mean(0) * p.mean(0)).sum()
            return self.out(h + y)

    class M(Classifier):
        def training_step(self, b, i):
            loss = F.cross_entropy(self(b[0]), b[1]) + 0.01 * self.net.aux
            return {"loss": loss, "aux": self.net.aux.detach()}

    return M(MoE(), 2e-3), dm(digits(seed))


@healthy("siamese triplet learning, margin loss", 0.9, 12)
def triplet(seed):
    x, xv, y, yv = digits(seed)

    class T(Dataset):
        def __init__(self):
            self.by = [torch.where(y == k)[0] for k in range(10)]

        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            k = int(y[i])
            n = (k + 1 + int(torch.randint(9, ()))) % 10
            pick = lambda idx: idx[int(torch.randint(len(idx), ()))]
            return x[i], x[pick(self.by[k])], x[pick(self.by[n])]

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(64, 64, 16)

        def training_step(self, b, i):
            a, p, n = (F.normalize(self.net(v)) for v in b)
            return F.triplet_margin_loss(a, p, n, margin=0.5)

        def validation_step(self, b, i):
            z, zt = F.normalize(self.net(b[0])), F.normalize(self.net(x))
            self.log("val/score", (y[(z @ zt.T).argmax(1)] == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return M(), DM(T(), TensorDataset(xv, yv), 32)


@healthy("ArcFace metric learning, normalised weights", 0.9, 15)
def arcface(seed):
    class M(Classifier):
        def __init__(self):
            super().__init__(mlp(64, 64, 32))
            self.w = nn.Parameter(torch.randn(10, 32))

        def forward(self, x):
            return F.normalize(self.net(x)) @ F.normalize(self.w).T

        def training_step(self, b, i):
            cos = self(b[0])
            one = F.one_hot(b[1], 10)
            theta = torch.acos(cos.clamp(-0.999, 0.999))
            return F.cross_entropy(16 * torch.where(one.bool(), torch.cos(theta + 0.2), cos), b[1])

    return M(), dm(digits(seed))


@healthy("multi-label, focal-ish BCE, 14 labels", 0.8, 20)
def multilabel(seed):
    x, y = sk.make_multilabel_classification(1000, 30, n_classes=14, n_labels=3, random_state=seed)
    x = (x - x.mean(0)) / x.std(0)
    a, b, c, d = (torch.as_tensor(v.astype("float32")) for v in split(x, y, seed))

    class M(Classifier):
        def loss(self, out, y):
            return F.binary_cross_entropy_with_logits(out, y)

        def validation_step(self, b, i):
            self.log("val/score", ((self(b[0]) > 0).float() == b[1]).float().mean())

    return M(mlp(30, 64, 14)), dm((a, b, c, d))


@healthy("two tasks with learned uncertainty weights, dict batch", 0.9, 15)
def multitask(seed):
    x, xv, y, yv = digits(seed)

    class D(Dataset):
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return {"pixels": self.x[i], "digit": self.y[i], "ink": self.x[i].sum() / 20, "name": f"img{i}"}

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
            self.cls = nn.Linear(64, 10)
            self.reg = nn.Linear(64, 1)
            self.s = nn.Parameter(torch.zeros(2))

        def forward(self, b):
            h = self.trunk(b["pixels"])
            return {"digit": self.cls(h), "ink": self.reg(h)[:, 0]}

        def training_step(self, b, i):
            o = self(b)
            losses = torch.stack([F.cross_entropy(o["digit"], b["digit"]), F.mse_loss(o["ink"], b["ink"])])
            return ((-self.s).exp() * losses + self.s).sum()

        def validation_step(self, b, i):
            self.log("val/score", (self(b)["digit"].argmax(1) == b["digit"]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(), DM(D(x, y), D(xv, yv), 32)


@healthy("ordinal regression by cumulative logits", 0.5, 30)
def ordinal(seed):
    a, b, c, d = friedman(seed)
    q = torch.quantile(c, torch.tensor([0.2, 0.4, 0.6, 0.8]))
    c, d = torch.bucketize(c, q), torch.bucketize(d, q)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(10, 32, 1)
            self.cuts = nn.Parameter(torch.linspace(-1, 1, 4))

        def training_step(self, b, i):
            x, y = b
            return F.binary_cross_entropy_with_logits(self.net(x) - self.cuts, (y[:, None] > torch.arange(4)).float())

        def validation_step(self, b, i):
            x, y = b
            self.log("val/score", (((self.net(x) - self.cuts) > 0).sum(1) == y).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    return M(), dm((a, b, c, d))


@healthy("Poisson regression of counts, log link", 0.4, 25)
def poisson(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1200, 8, generator=g)
    w = torch.randn(8, generator=g) * 0.4
    y = torch.poisson((x @ w + 1.2).exp(), generator=g)

    class M(Regressor):
        def loss(self, out, y):
            return F.poisson_nll_loss(out.squeeze(-1), y)

        def validation_step(self, b, i):
            x, y = b
            self.log("val/score", 1 - F.mse_loss(self(x).squeeze(-1).exp(), y) / y.var())

    return M(mlp(8, 32, 1), 3e-3), dm((x[:900], x[900:], y[:900], y[900:]))


@healthy("quantile regression of three quantiles, heteroscedastic", 0.0, 25)
def quantile(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1200, 1, generator=g) * 4 - 2
    y = torch.sin(2 * x[:, 0]) + (0.1 + 0.3 * x[:, 0].abs()) * torch.randn(1200, generator=g)
    q = torch.tensor([0.1, 0.5, 0.9])

    class M(Regressor):
        def loss(self, out, y):
            e = y[:, None] - out
            return torch.maximum(q * e, (q - 1) * e).mean()

        def validation_step(self, b, i):
            x, y = b
            o = self(x)
            self.log("val/score", 1 - ((y < o[:, 2]) & (y > o[:, 0])).float().mean().sub(0.8).abs() * 5)

    return M(mlp(1, 32, 32, 3), 3e-3), dm((x[:900], x[900:], y[:900], y[900:]))


@healthy("Cox partial likelihood over a batch", 0.6, 20)
def survival(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 6, generator=g)
    w = torch.tensor([1.0, -1, 0.5, 0, 0, 0])
    t = -torch.rand(1000, generator=g).log() / (x @ w).exp()
    cens = torch.rand(1000, generator=g) * 3
    ev = (t <= cens).float()
    t = torch.minimum(t, cens)
    y = torch.stack([t, ev], 1)

    class M(Classifier):
        def loss(self, out, y):
            o = torch.argsort(y[:, 0], descending=True)
            r, e = out[o, 0], y[o, 1]
            return -((r - torch.logcumsumexp(r, 0)) * e).sum() / e.sum().clamp(min=1)

        def validation_step(self, b, i):
            x, y = b
            r = self(x)[:, 0]
            m = (y[:, None, 0] < y[None, :, 0]) & (y[:, None, 1] > 0)
            self.log("val/score", ((r[:, None] > r[None]) & m).sum() / m.sum())

    return M(mlp(6, 32, 1)), dm((x[:800], x[800:], y[:800], y[800:]), 64)


@healthy("segmentation with ignore_index 255", 0.9, 12)
def segmentation(seed):
    g = torch.Generator().manual_seed(seed)
    n = 400
    yy, xx = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    c = torch.rand(n, 2, generator=g) * 8 + 4
    r = torch.rand(n, generator=g) * 3 + 2
    d = ((yy - c[:, :1, None]) ** 2 + (xx - c[:, 1:, None]) ** 2).sqrt()
    m = (d < r[:, None, None]).long()
    x = m[:, None].float() + 0.5 * torch.randn(n, 1, 16, 16, generator=g)
    m[(d - r[:, None, None]).abs() < 0.7] = 255

    class M(Classifier):
        def loss(self, o, y):
            return F.cross_entropy(o, y, ignore_index=255)

        def validation_step(self, b, i):
            x, y = b
            k = y != 255
            self.log("val/score", (self(x).argmax(1) == y)[k].float().mean())

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )
    return M(net, 3e-3), dm((x[:300], x[300:], m[:300], m[300:]), 16)


@healthy("box and class head (detection-like), smooth L1 + BCE + masked", 0.9, 20)
def detection(seed):
    g = torch.Generator().manual_seed(seed)
    n = 800
    has = torch.rand(n, generator=g) < 0.6
    c = torch.rand(n, 2, generator=g) * 0.6 + 0.2
    w = torch.rand(n, 2, generator=g) * 0.2 + 0.15
    yy, xx = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    box = (
        ((xx - c[:, :1, None]).abs() < w[:, :1, None])
        & ((yy - c[:, 1:, None]).abs() < w[:, 1:, None])
        & has[:, None, None]
    )
    x = box[:, None].float() + 0.2 * torch.randn(n, 1, 16, 16, generator=g)
    t = torch.cat([has[:, None].float(), c, w], 1)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 8, 3, 2, 1),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, 2, 1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(256, 64),
                nn.ReLU(),
            )
            self.obj = nn.Linear(64, 1)
            self.box = nn.Linear(64, 4)

        def forward(self, x):
            h = self.body(x)
            return self.obj(h)[:, 0], self.box(h).sigmoid()

        def training_step(self, b, i):
            x, t = b
            o, bx = self(x)
            m = t[:, 0]
            obj = F.binary_cross_entropy_with_logits(o, m)
            l = (F.smooth_l1_loss(bx, t[:, 1:], reduction="none", beta=0.1).sum(1) * m).sum() / m.sum().clamp(min=1)
            self.log_dict({"obj": obj, "box": l})
            return obj + 5 * l

        def validation_step(self, b, i):
            x, t = b
            self.log("val/score", ((self(x)[0] > 0) == (t[:, 0] > 0)).float().mean())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 2e-3)

    return M(), dm((x[:600], x[600:], t[:600], t[600:]))


@healthy("knowledge distillation from a trained teacher", 0.93, 15)
def distill(seed):
    data = digits(seed)
    x, _, y, _ = data
    teacher = mlp(64, 128, 10)
    opt = torch.optim.Adam(teacher.parameters(), 5e-3)
    for _ in range(100):
        opt.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        opt.step()
    teacher.requires_grad_(False).eval()

    class M(Classifier):
        def __init__(self):
            super().__init__(mlp(64, 24, 10), 3e-3)
            self.teacher = teacher

        def training_step(self, b, i):
            x, y = b
            s = self(x)
            with torch.no_grad():
                t = self.teacher(x)
            T = 4.0
            kd = F.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="batchmean") * T * T
            return 0.3 * F.cross_entropy(s, y) + 0.7 * kd

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), self.lr)

    return M(), dm(data)


@healthy("masked language model, 15 % masked, tied output", 0.3, 20)
def mlm(seed):
    g = torch.Generator().manual_seed(seed)
    P = torch.softmax(3 * torch.randn(20, 20, generator=g), 1)
    s = [torch.randint(20, (1000,), generator=g)]
    for _ in range(15):
        s.append(torch.multinomial(P[s[-1]], 1, generator=g)[:, 0])
    s = torch.stack(s, 1)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(21, 32)
            nn.init.normal_(self.emb.weight, std=0.1)
            self.pos = nn.Parameter(torch.randn(16, 32) * 0.1)
            self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True), 2)
            self.bias = nn.Parameter(torch.zeros(21))

        def forward(self, t):
            return self.enc(self.emb(t) + self.pos) @ self.emb.weight.T + self.bias

        def mask(self, s):
            m = torch.rand(s.shape) < 0.15
            t = s.masked_fill(m, 20)
            y = s.masked_fill(~m, -100)
            return t, y

        def training_step(self, b, i):
            t, y = self.mask(b[0])
            return F.cross_entropy(self(t).flatten(0, 1), y.flatten())

        def validation_step(self, b, i):
            t, y = self.mask(b[0])
            k = y >= 0
            self.log("val/score", (self(t).argmax(-1) == y)[k].float().mean())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 3e-3)

    return M(), DM(TensorDataset(s[:800]), TensorDataset(s[800:]), 32)


@healthy("diffusion denoiser on moons, time embedding", 0.25, 15)
def diffusion(seed):
    x, _ = sk.make_moons(2000, noise=0.05, random_state=seed)
    x = torch.as_tensor(((x - x.mean(0)) / x.std(0)).astype("float32"))

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.register_buffer("ab", torch.cumprod(1 - torch.linspace(1e-4, 0.05, 100), 0))
            self.t = nn.Embedding(100, 32)
            self.inp = nn.Linear(2, 64)
            self.mid = nn.Linear(32, 64)
            self.net = mlp(64, 128, 128, 2, act=nn.SiLU)
            nn.init.zeros_(self.net[-1].weight)
            nn.init.zeros_(self.net[-1].bias)

        def forward(self, x, t):
            return self.net(F.silu(self.inp(x) + self.mid(self.t(t))))

        def loss(self, x):
            t = torch.randint(100, (len(x),))
            e = torch.randn_like(x)
            a = self.ab[t][:, None]
            return F.mse_loss(self(a.sqrt() * x + (1 - a).sqrt() * e, t), e)

        def training_step(self, b, i):
            return self.loss(b[0])

        def validation_step(self, b, i):
            self.log("val/score", 1 - self.loss(b[0]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(), DM(TensorDataset(x[:1600]), TensorDataset(x[1600:]), 64)


@healthy("RealNVP flow, negative log likelihood", -1.4, 15)
def flow(seed):
    x, _ = sk.make_moons(1500, noise=0.05, random_state=seed)
    x = torch.as_tensor(x.astype("float32"))

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList(mlp(1, 32, 32, 2, act=nn.Tanh) for _ in range(6))

        def nll(self, x):
            ld = 0.0
            for k, n in enumerate(self.nets):
                a, b = x[:, k % 2 : k % 2 + 1], x[:, 1 - k % 2 : 2 - k % 2]
                s, t = n(a).chunk(2, 1)
                s = s.tanh()
                b = b * s.exp() + t
                ld = ld + s.sum(1)
                x = torch.cat([a, b] if k % 2 == 0 else [b, a], 1)
            return (0.5 * (x**2).sum(1) + math.log(2 * math.pi) - ld).mean()

        def training_step(self, b, i):
            return self.nll(b[0])

        def validation_step(self, b, i):
            self.log("val/score", -self.nll(b[0]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(), DM(TensorDataset(x[:1200]), TensorDataset(x[1200:]), 64)


@healthy("VAE with KL warm-up by a counter, Gaussian likelihood with learned scale", 0.3, 25)
def vae(seed):
    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.enc = mlp(64, 64, 16)
            self.dec = mlp(8, 64, 64)
            self.ls = nn.Parameter(torch.tensor(-1.5))

        def parts(self, x):
            m, lv = self.enc(x).chunk(2, 1)
            z = m + torch.randn_like(m) * (0.5 * lv).exp()
            r = self.dec(z)
            nll = (0.5 * ((x - r) / self.ls.exp()) ** 2 + self.ls).sum(1).mean()
            kl = -0.5 * (1 + lv - m**2 - lv.exp()).sum(1).mean()
            return nll, kl, r

        def training_step(self, b, i):
            nll, kl, _ = self.parts(b[0])
            return nll + min(1.0, self.global_step / 200) * kl

        def validation_step(self, b, i):
            nll, kl, r = self.parts(b[0])
            self.log("val/score", 1 - F.mse_loss(r, b[0]) / b[0].var(0).mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return M(), dm(digits(seed))


@healthy("WGAN-GP, manual optimisation, 3 critic steps", -0.5, 50)
def wgan(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1200, 2, generator=g) * 0.3 + torch.tensor([1.5, -1.0])

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.g = mlp(4, 32, 32, 2)
            self.d = mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))

        def training_step(self, b, i):
            og, od = self.optimizers()
            real = b[0]
            fake = self.g(torch.randn(len(real), 4)).detach()
            e = torch.rand(len(real), 1)
            mix = (e * real + (1 - e) * fake).requires_grad_()
            grad = torch.autograd.grad(self.d(mix).sum(), mix, create_graph=True)[0]
            gp = ((grad.norm(dim=1) - 1) ** 2).mean()
            ld = self.d(fake).mean() - self.d(real).mean() + 10 * gp
            od.zero_grad()
            self.manual_backward(ld)
            od.step()
            self.log("d", ld)
            if i % 3 == 0:
                lg = -self.d(self.g(torch.randn(len(real), 4))).mean()
                og.zero_grad()
                self.manual_backward(lg)
                og.step()

        def validation_step(self, b, i):
            self.log("val/score", -(self.g(torch.randn(256, 4)).mean(0) - b[0].mean(0)).norm())

        def configure_optimizers(self):
            return torch.optim.Adam(self.g.parameters(), 1e-3, betas=(0.5, 0.9)), torch.optim.Adam(
                self.d.parameters(), 1e-3, betas=(0.5, 0.9)
            )

    return M(), DM(TensorDataset(x[:1000]), TensorDataset(x[1000:]), 64)


@healthy("MoCo-like: momentum encoder and queue buffer", 0.75, 25)
def moco(seed):
    x, xv, y, yv = digits(seed)

    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.q = mlp(64, 64, 16)
            self.k = copy.deepcopy(self.q).requires_grad_(False)
            self.register_buffer("queue", F.normalize(torch.randn(256, 16)))
            self.register_buffer("ptr", torch.zeros((), dtype=torch.long))

        def training_step(self, b, i):
            v = b[0]
            q = F.normalize(self.q(v + 0.15 * torch.randn_like(v)))
            with torch.no_grad():
                for a, c in zip(self.k.parameters(), self.q.parameters()):
                    a.lerp_(c, 0.05)
                k = F.normalize(self.k(v + 0.15 * torch.randn_like(v)))
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone().T], 1) / 0.2
            loss = F.cross_entropy(logits, torch.zeros(len(v), dtype=torch.long))
            n = len(k)
            p = int(self.ptr)
            self.queue[torch.arange(p, p + n) % 256] = k
            self.ptr.fill_((p + n) % 256)
            return loss

        def validation_step(self, b, i):
            z, zt = F.normalize(self.q(b[0])), F.normalize(self.q(x))
            self.log("val/score", (y[(z @ zt.T).argmax(1)] == b[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.q.parameters(), 0.05, momentum=0.9)

    return M(), DM(TensorDataset(x), TensorDataset(xv, yv), 64, drop_last=True)
