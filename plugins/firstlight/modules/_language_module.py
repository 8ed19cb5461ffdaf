"""LanguageModule: a causal language model, its logits never held all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from firstlight._evaluating import evaluating
from firstlight._require import require
from firstlight.losses import LinearCrossEntropyLoss, linear_cross_entropy_loss
from firstlight.modules._exportable import Exportable
from firstlight.modules._generation import generate_tokens
from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._shared import Stage
from firstlight.modules._text_samples import show_samples
from firstlight.modules._token_batch import token_batch
from firstlight.modules._token_metrics import BitsPerToken, Perplexity, TokenMean


@final
class LanguageModule(ObjectiveModule):
    """Train ``model`` and ``head`` to predict the next token; the loss's one term is named ``task``.

    ``model`` maps tokens ``[N, T]`` to hidden states ``[N, T, H]``, of which each may depend on tokens up to its own;
    ``head`` holds the weight that turns them into logits. The loss takes both and works a chunk of tokens at a time.

    Batches are integer tensors of any width, alone or as the only item of a tuple: tokens ``[N, T]``, of which the
    first ``T - 1`` are read and the last ``T - 1`` predicted; or ``(input [N, T], target [N, T])``, also as a mapping
    with the keys ``"input"`` and ``"target"``, the target already shifted. Targets equal to the loss's
    ``ignore_index`` do not count.

    Validation and test report the plain negative log-likelihood of the next token, whatever smoothing or z-loss
    training uses, over all tokens that count: ``perplexity = exp(total nll / tokens)``. Prediction returns
    ``{"target": [N, T], "nll": [N, T]}``: what each token costs, in nats; 0 where it does not count.

    Logs: ``train/loss`` and ``train/loss/task`` at log steps; ``<stage>/loss``, ``<stage>/loss/task``,
    ``<stage>/perplexity`` and ``<stage>/bits_per_token`` for ``val`` and ``test``, once an epoch; the table
    ``val/samples`` if there are prompts. No step makes the host wait for the device.

    Args:
        model: tokens to hidden states. Give a spec, or ``model=`` again when loading: see :class:`SupervisedModule`.
        head: linear layer from ``H`` to the vocabulary; its weight and bias are given to the loss.
        loss: default plain :class:`LinearCrossEntropyLoss`; label smoothing, z-loss, ``ignore_index`` are its options.
        tie_to: name of an embedding of ``model`` whose weight becomes the head's, such as ``"embedding"``.
        context_length: the longest sequence that ``model`` takes; :meth:`generate` shows it no more.
        alphabet: the character of each token, for prompts and samples.
        sample_prompts: after each validation the model goes on from these; to loggers that take tables, else to
            ``samples.txt`` in the run folder. Drawn from a generator of their own, always the same: an observer.
        sample_tokens: how many tokens each sample gets.
        penalties: see :class:`ObjectiveModule`.
        optimizer: see :class:`ObjectiveModule`.
        compile: compile ``model`` in place with :func:`torch.compile`; checkpoint keys stay the same.

    Raises:
        TypeError: a part of the wrong kind; a batch that is none of the above.
        ValueError: a loss that is not reduced to a mean, nothing to tie to, shapes that do not fit, an alphabet that
            does not give each token a character of its own, a prompt that is not written in it.

    >>> model = nn.Sequential(nn.Embedding(27, 16), nn.LayerNorm(16))  # looks at the last token only: a bigram model
    >>> module = LanguageModule(model, nn.Linear(16, 27), tie_to="0")
    >>> module.head.weight is model[0].weight
    True
    >>> module.generate(torch.tensor([3, 1]), 4).shape
    torch.Size([6])
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Linear,
        loss: LinearCrossEntropyLoss | None = None,
        *,
        tie_to: str | None = None,
        context_length: int | None = None,
        alphabet: str | None = None,
        sample_prompts: Sequence[str] = (),
        sample_tokens: int = 100,
        penalties: Sequence[nn.Module] = (),
        optimizer: OptimizerCallable | None = None,
        compile: bool = False,  # noqa: A002  torch's word
    ) -> None:
        super().__init__(penalties=penalties, optimizer=optimizer)
        loss = LinearCrossEntropyLoss() if loss is None else loss
        require(isinstance(model, nn.Module), "model", model, "an nn.Module or its spec", error=TypeError)
        require(isinstance(head, nn.Linear), "head", head, "an nn.Linear or its spec", error=TypeError)
        expected = "a LinearCrossEntropyLoss or its spec"
        require(isinstance(loss, LinearCrossEntropyLoss), "loss", loss, expected, error=TypeError)
        require(loss.reduction == "mean", "loss.reduction", loss.reduction, "'mean'")
        for name, value in (("context_length", context_length), ("sample_tokens", sample_tokens)):
            require(value is None or value >= 1, name, value, "one or more")
        self.model = model
        self.head = head
        self.loss = loss
        self.context_length = context_length
        self.alphabet = alphabet
        self.sample_tokens = sample_tokens
        self._compile = compile
        if tie_to is not None:
            self.head.weight = _embedding(model, tie_to, head).weight
        if alphabet is not None:
            ok = len(set(alphabet)) == len(alphabet) == head.out_features
            require(ok, "alphabet", alphabet, f"{head.out_features} different characters, one for each token")
        self.sample_prompts = {prompt: self._encode(prompt) for prompt in sample_prompts}
        self._means = nn.ModuleDict({stage: _means() for stage in ("val", "test")})

    def configure_model(self) -> None:
        if self._compile:
            # In place: torch.compile(model) would put "_orig_mod" into every key of the checkpoint.
            self.model.compile()
            self._compile = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Return all logits: tokens ``[N, T]`` to ``[N, T, V]``. Training does without them."""
        logits: Tensor = self.head(self.model(tokens))
        return logits

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        inputs, target = token_batch(batch)
        return {"task": self._loss(self.model(inputs), target)}

    def num_valid(self, batch: Any) -> Tensor:
        """Return the number of tokens that the loss is the mean of, without waiting for the device."""
        return (token_batch(batch)[1] != self.loss.ignore_index).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        inputs, target = token_batch(batch)
        return {"target": target, "nll": self._nll(self.model(inputs), target)}

    def export_model(self, batch: Any) -> Exportable:
        """Return tokens ``[N, T]`` to logits ``[N, T, V]``, for sequences of any length that ``model`` takes."""
        return Exportable(nn.Sequential(self.model, self.head), (token_batch(batch)[0],), dynamic_dims=(0, 1))

    def on_validation_epoch_end(self) -> None:
        if not self.sample_prompts:
            return
        rows = []
        for prompt, tokens in self.sample_prompts.items():  # on all ranks: a sharded model needs them all
            generator = torch.Generator(self.device).manual_seed(0)
            written = self.generate(torch.tensor(tokens), self.sample_tokens, generator=generator)
            rows.append((prompt, self._decode(written[len(tokens) :])))
        if not self.trainer.sanity_checking:  # which has shown that there will be samples, before the training
            show_samples(self.trainer, "val/samples", rows)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        num_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue ``prompt``, each token drawn from ``softmax(logits / temperature)``, in evaluation mode.

        The model runs anew on the whole context (the last ``context_length`` tokens) for every token.

        Shapes: ``prompt [T]`` or ``[N, T]``, integers; to ``[T + num_tokens]`` or ``[N, T + num_tokens]``.
        Law: temperature 0 takes the likeliest token, as ``top_k=1`` does; the same generator gives the same tokens.

        Args:
            prompt: at least one token.
            num_tokens: how many to add.
            temperature: below 1 prefers likely tokens.
            top_k: draw from so many of the likeliest tokens.
            generator: on the device of the module; default torch's own.

        Raises:
            ValueError: a prompt that holds no token, options out of range.
        """
        with evaluating(self):
            return generate_tokens(
                self._next_logits, prompt, num_tokens, temperature=temperature, top_k=top_k, generator=generator
            )

    def _next_logits(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.head.weight.device)
        hidden = self.model(tokens if self.context_length is None else tokens[:, -self.context_length :])
        logits: Tensor = self.head(hidden[:, -1])
        return logits

    def _loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(hidden, self.head.weight, target, self.head.bias)
        return loss

    def _nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        options = {"ignore_index": self.loss.ignore_index, "chunk_tokens": self.loss.chunk_tokens}
        head = self.head
        return linear_cross_entropy_loss(hidden, head.weight, target, head.bias, reduction="none", **options)  # type: ignore[arg-type]

    def _evaluate(self, batch: Any, stage: Stage) -> Tensor:
        inputs, target = token_batch(batch)
        hidden = self.model(inputs)
        loss = self._loss(hidden, target)
        tokens = self.num_valid((inputs, target))
        plain = not self.loss.label_smoothing and not self.loss.z_loss and self.loss.class_weight is None
        nll = loss if plain else self._nll(hidden, target).sum() / tokens.clamp(min=1)
        means: Any = self._means[stage]
        for name, mean in means.items():
            mean.update(loss if name.startswith("loss") else nll, tokens)
            self.log(f"{stage}/{name}", mean, on_step=False, on_epoch=True, prog_bar=f"{stage}/{name}" == "val/loss")
        return loss

    def _encode(self, prompt: str) -> list[int]:
        ok = self.alphabet is not None and len(prompt) > 0 and set(prompt) <= set(self.alphabet)
        require(ok, "sample_prompts", prompt, "written in the characters of alphabet=, at least one")
        assert self.alphabet is not None
        return [self.alphabet.index(character) for character in prompt]

    def _decode(self, tokens: Tensor) -> str:
        assert self.alphabet is not None
        return "".join(self.alphabet[token] for token in tokens.tolist())


def _means() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"loss": TokenMean(), "loss/task": TokenMean(), "perplexity": Perplexity(), "bits_per_token": BitsPerToken()}
    )


def _embedding(model: nn.Module, name: str, head: nn.Linear) -> nn.Embedding:
    found = dict(model.named_modules()).get(name)
    known = [path for path, layer in model.named_modules() if isinstance(layer, nn.Embedding)]
    require(isinstance(found, nn.Embedding), "tie_to", name, f"the name of an embedding of the model, one of {known}")
    assert isinstance(found, nn.Embedding)
    shape = (head.out_features, head.in_features)
    require(
        found.weight.shape == shape, "tie_to", f"{name} {tuple(found.weight.shape)}", f"of the head's shape {shape}"
    )
    return found
