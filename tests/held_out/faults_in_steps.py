"""Faults inside steps, in sequences, in manual optimization and in labels, each with its twin."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn import datasets as sk
from torch import nn
from torch.utils.data import TensorDataset

from held_out.base import DM, Classifier, Regressor, digits, dm, faulty, friedman, mlp, split, table


@faulty("VAE: sign of the KL turned", "loss_unbounded ascending")
def kl_sign(bug, seed):
    class M(LightningModule):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = mlp(64, 64, 16), mlp(8, 64, 64)

        def training_step(self, b, i):
            x = b[0]
            m, lv = self.enc(x).chunk(2, 1)
            r = self.dec(m + torch.randn_like(m) * (0.5 * lv).exp())
            rec = F.binary_cross_entropy_with_logits(r, x, reduction="none").sum(1).mean()
            kl = -0.5 * (1 + lv - m**2 - lv.exp()).sum(1).mean()
            return rec - kl if bug else rec + kl

        def validation_step(self, b, i):
            self.log(
                "val/score",
                1 - F.mse_loss(self.dec(self.enc(b[0]).chunk(2, 1)[0]).sigmoid(), b[0]) / b[0].var(0).mean(),
            )

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return M(), dm(digits(seed))


@faulty("view instead of permute before a GRU: batch and time mixed", "batch_mixing")
def view_mix(bug, seed):
    g = torch.Generator().manual_seed(seed)
    c = torch.randint(3, (900,), generator=g)
    t = torch.linspace(0, 6.28, 24)
    x = (
        torch.sin((c[:, None] + 1) * t + 6.28 * torch.rand(900, 1, generator=g))
        + 0.2 * torch.randn(900, 24, generator=g)
    )[..., None]

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(1, 32)
            self.o = nn.Linear(32, 3)

        def forward(self, x):
            v = x.view(x.shape[1], x.shape[0], 1) if bug else x.transpose(0, 1)
            return self.o(self.rnn(v)[0][-1])

    return Classifier(N(), 5e-3), dm((x[:700], x[700:], c[:700], c[700:]))


@faulty("GRU with batch_first forgotten: batch read as time", "batch_mixing")
def batch_first(bug, seed):
    g = torch.Generator().manual_seed(seed)
    c = torch.randint(3, (900,), generator=g)
    t = torch.linspace(0, 6.28, 24)
    x = (
        torch.sin((c[:, None] + 1) * t + 6.28 * torch.rand(900, 1, generator=g))
        + 0.2 * torch.randn(900, 24, generator=g)
    )[..., None]

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(1, 32, batch_first=not bug)
            self.o = nn.Linear(32, 3)

        def forward(self, x):
            return self.o(self.rnn(x)[0][:, -1])

    return Classifier(N(), 5e-3), dm((x[:700], x[700:], c[:700], c[700:]))


@faulty(
    "hidden state carried from batch to batch without detach", "step_raises batch_mixing grad_accumulating eval_random"
)
def hidden_carried(bug, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(640, 12, 4, generator=g)
    y = (x[:, :, 0].sum(1) > 0).long()

    class M(Classifier):
        def __init__(self):
            super().__init__(None, 3e-3)
            self.rnn, self.o, self.h = nn.GRU(4, 24, batch_first=True), nn.Linear(24, 2), None

        def forward(self, x):
            h = self.h if bug and self.h is not None and self.h.shape[1] == len(x) else None
            z, self.h = self.rnn(x, h)
            return self.o(z[:, -1])

    return M(), dm((x[:512], x[512:], y[:512], y[512:]), 32)


def markov(seed, n=900, T=17, V=12):
    g = torch.Generator().manual_seed(seed)
    P = torch.softmax(2 * torch.randn(V, V, generator=g), 1)
    s = [torch.randint(V, (n,), generator=g)]
    for _ in range(T - 1):
        s.append(torch.multinomial(P[s[-1]], 1, generator=g)[:, 0])
    return torch.stack(s, 1) + 1


class LM(LightningModule):
    def __init__(self, causal=True, target="next", pad=False, V=13):
        super().__init__()
        self.emb, self.pos = nn.Embedding(V, 32), nn.Parameter(torch.randn(16, 32) * 0.1)
        self.enc = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True),
            1,
            enable_nested_tensor=False,
        )
        self.out = nn.Linear(32, V)
        self.causal, self.target, self.pad = causal, target, pad

    def forward(self, t):
        return self.out(
            self.enc(
                self.emb(t) + self.pos[: t.shape[1]],
                mask=nn.Transformer.generate_square_subsequent_mask(t.shape[1]) if self.causal else None,
            )
        )

    def step(self, s):
        x, y = s[:, :-1], s[:, 1:] if self.target == "next" else s[:, :-1]
        o = self(x)
        return o, y, F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=0 if self.pad else -100)

    def training_step(self, b, i):
        return self.step(b[0])[2]

    def validation_step(self, b, i):
        o = self(b[0][:, :-1])
        y = b[0][:, 1:]
        k = y > 0
        self.log("val/score", (o.argmax(-1) == y)[k].float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-3)


@faulty("language model whose targets are its inputs (shift forgotten)", "target_copies_input", 15)
def no_shift(bug, seed):
    s = markov(seed)
    return LM(target="same" if bug else "next"), DM(TensorDataset(s[:700]), TensorDataset(s[700:]))


@faulty("causal mask missing", "not_causal", 15)
def no_mask(bug, seed):
    s = markov(seed)
    return LM(causal=not bug), DM(TensorDataset(s[:700]), TensorDataset(s[700:]))


@faulty("padding counted in the loss, nine tenths padding", "padding", 15)
def pad_loss(bug, seed):
    s = markov(seed)
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(2, 6, (len(s), 1), generator=g)
    s = s.masked_fill(torch.arange(17) >= n, 0)
    return LM(pad=not bug), DM(TensorDataset(s[:700]), TensorDataset(s[700:]))


@faulty("class weights inverted: the common class weighs more", "imbalance_unweighted", 15)
def inverted(bug, seed):
    x, y = sk.make_classification(2000, 20, n_informative=6, weights=[0.95], flip_y=0, class_sep=1.0, random_state=seed)
    a, b, c, d = map(torch.as_tensor, split(x.astype("float32"), y, seed, strat=y))
    n = torch.bincount(c).float()
    w = n / n.sum() if bug else n.sum() / n / 2

    class M(Classifier):
        def loss(self, o, y):
            return F.cross_entropy(o, y, weight=w)

        def validation_step(self, bt, i):
            pass

        def on_validation_epoch_end(self):
            p = self(b).argmax(1) == d
            self.log("val/score", (p[d == 1].float().mean() + p[d == 0].float().mean()) / 2)

    return M(mlp(20, 32, 2)), dm((a, b, c, d), 64)


@faulty("gradient clipping at 1e-6 with SGD", "clip_tiny")
def clip(bug, seed):
    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return M(mlp(64, 64, 10)), dm(digits(seed)), {"gradient_clip_val": 1e-6 if bug else 1.0}


@faulty("eval() called in training_step: dropout and BN off", "eval_mode stuck_statistics")
def eval_train(bug, seed):
    class M(Classifier):
        def training_step(self, b, i):
            if bug:
                self.net.eval()
            return super().training_step(b, i)

    return M(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))), dm(
        digits(seed)
    )


@faulty(
    "BatchNorm with batches of one image",
    "bn_single step_raises batch_mixing stuck_statistics constant_output cannot_learn",
)
def bn_one(bug, seed):
    n = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    return Classifier(n, 1e-3), dm(digits(seed), 1 if bug else 32)


@faulty("manual optimization without zero_grad", "grad_accumulating")
def no_zero(bug, seed):
    class M(Classifier):
        def __init__(self, n):
            super().__init__(n)
            self.automatic_optimization = False

        def training_step(self, b, i):
            o = self.optimizers()
            loss = F.cross_entropy(self(b[0]), b[1])
            if not bug:
                o.zero_grad()
            self.manual_backward(loss)
            o.step()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("manual optimization without step", "never_moves")
def no_step(bug, seed):
    class M(Classifier):
        def __init__(self, n):
            super().__init__(n)
            self.automatic_optimization = False

        def training_step(self, b, i):
            o = self.optimizers()
            o.zero_grad()
            loss = F.cross_entropy(self(b[0]), b[1])
            self.manual_backward(loss)
            if not bug:
                o.step()
            return loss

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("random backbone frozen by mistake, only a bias-like head trains", "mostly_frozen cannot_learn")
def frozen_all(bug, seed):
    n = mlp(64, 32, 32, 10)
    if bug:
        n.requires_grad_(False)
        n[-1].bias.requires_grad_(True)

    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), 3e-3)

    return M(n), dm(digits(seed))


@faulty("embedding index clamped: all tokens collapse into one", "constant_output degenerate_data")
def clamp(bug, seed):
    g = np.random.default_rng(seed)
    y = g.integers(2, size=1000)
    p = np.ones((2, 60))
    p[0, :15] = 4
    p[1, 15:30] = 4
    x = np.stack([g.choice(60, 20, p=p[k] / p[k].sum()) for k in y]) + 100
    x, y = torch.as_tensor(x), torch.as_tensor(y)

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = nn.Embedding(200, 16), mlp(16, 32, 2)

        def forward(self, t):
            return self.h(self.e(t.clamp(max=99) if bug else t).mean(1))

    return Classifier(N(), 5e-3), dm((x[:750], x[750:], y[:750], y[750:]))


@faulty("normalised twice: /255 of what is in 0..1", "input_scale")
def twice_norm(bug, seed):
    x, xv, y, yv = digits(seed)
    k = 255.0 if bug else 1.0

    class M(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return M(mlp(64, 64, 10)), dm((x / k, xv / k, y, yv))


@faulty("uint8 arithmetic wraps around in the data set", "uint8 no_label_signal split_shift")
def overflow(bug, seed):
    x, xv, y, yv = digits(seed)
    q = lambda v: (v * 255).round().byte()

    def f(v):
        v = q(v)
        v = (v * 3 + 40) if bug else v
        return v.float() / 255

    return Classifier(mlp(64, 64, 10)), dm((f(x), q(xv).float() / 255, y, yv))


@faulty("one-hot float labels of shape (B,1,C) against (B,C): MSE broadcasts", "loss_not_per_sample")
def onehot_shape(bug, seed):
    class M(Classifier):
        def loss(self, o, y):
            warnings.simplefilter("ignore")
            t = F.one_hot(y, 10).float()
            return F.mse_loss(o, t[:, None] if bug else t)

    return M(mlp(64, 64, 10), 3e-3), dm(digits(seed))


@faulty("CrossEntropy over the wrong axis of (B,T,V): reshape instead of transpose", "misaligned")
def wrong_axis(bug, seed):
    s = markov(seed)

    class L(LM):
        def training_step(self, b, i):
            o = self(b[0][:, :-1])
            y = b[0][:, 1:]
            B, T, V = o.shape
            return F.cross_entropy(o.reshape(B, V, T) if bug else o.transpose(1, 2), y)

    return L(), DM(TensorDataset(s[:700]), TensorDataset(s[700:]))


@faulty("labels of the next sample: off by one row", "no_label_signal")
def off_by_one(bug, seed):
    x, xv, y, yv = digits(seed)
    return Classifier(mlp(64, 64, 10)), dm((x, xv, y.roll(1) if bug else y, yv))


@faulty("accumulated metrics: the loss graph kept, loss.item() returned", "loss_detached")
def item(bug, seed):
    class M(Classifier):
        def training_step(self, b, i):
            loss = F.cross_entropy(self(b[0]), b[1])
            return torch.tensor(loss.item(), requires_grad=True) if bug else loss

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("no activation between layers", "linear_network", 25)
def linear(bug, seed):
    x, y = sk.make_circles(800, noise=0.05, factor=0.5, random_state=seed)
    d = map(torch.as_tensor, split(x.astype("float32"), y, seed))
    return Classifier(mlp(2, 32, 32, 2, act=nn.Identity if bug else nn.ReLU), 5e-3), dm(tuple(d))


@faulty("dropout after the last layer", "dropout_on_output over_regularized loss", 10)
def drop_last(bug, seed):
    return Classifier(mlp(64, 64, 10, end=[nn.Dropout(0.5)] if bug else [])), dm(digits(seed))


@faulty("ten classes, five outputs", "label_range step_raises")
def few_outputs(bug, seed):
    return Classifier(mlp(64, 64, 5 if bug else 10)), dm(digits(seed))


@faulty("tanh head for a target standardised to +-3", "target_out_of_range", 25)
def tanh_head(bug, seed):
    return Regressor(mlp(10, 32, 1, end=[nn.Tanh()] if bug else []), 5e-3), dm(friedman(seed))


@faulty("lr scheduler warm-up longer than the run", "schedule_shape lr_too_low")
def long_warm(bug, seed):
    class M(Classifier):
        def configure_optimizers(self):
            o = torch.optim.Adam(self.parameters(), 2e-3)
            w = 1000000 if bug else 50
            return {
                "optimizer": o,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / w)),
                    "interval": "step",
                },
            }

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("sqrt at zero: NaN gradient from a norm of identical embeddings", "nonfinite_gradient")
def nan_grad(bug, seed):
    class M(Classifier):
        def loss(self, o, y):
            r = (o - o.detach()).pow(2).sum(1)
            return F.cross_entropy(o, y) + (r.sqrt().mean() if bug else (r + 1e-8).sqrt().mean())

    return M(mlp(64, 64, 10)), dm(digits(seed))


@faulty("target leaks into the inputs as a column", "target_leak", 15)
def leak(bug, seed):
    a, b, c, d = table(sk.load_diabetes, seed, True)
    if bug:
        a = torch.cat([a, c[:, None]], 1)
        b = torch.cat([b, torch.zeros(len(b), 1)], 1)
    return Regressor(mlp(11 if bug else 10, 32, 1), 2e-3), dm((a, b, c, d))
