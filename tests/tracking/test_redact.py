import pytest

from firstlight.tracking import redact, redact_argv, redact_diff


@pytest.mark.parametrize(
    "key",
    ["token", "hf_token", "HF_TOKEN", "access-token", "apiKey", "api_key", "API KEY", "wandb.api_key", "password",
     "db_passwd", "client_secret", "aws_secret_access_key", "private_key", "credentials"],
)  # fmt: skip
def test_secret_keys_are_masked(key):
    assert redact({key: "x"}) == {key: "***"}
    assert redact({"a": [{"b": {key: {"c": ["x", 1]}}}]}) == {"a": [{"b": {key: {"c": ["***", "***"]}}}]}


@pytest.mark.parametrize(
    "key",
    ["lr", "tokenizer", "max_tokens", "num_tokens", "token_dim", "pad_token", "tokens_per_batch", "passes", "key"],
)
def test_hyperparameters_stay(key):
    assert redact({key: 3}) == {key: 3}
    assert redact({key: "gpt2"}) == {key: "gpt2"}


def test_what_hides_nothing_stays():
    config = {"token": None, "password": "", "use_token": True, "path": "a://b/c@d", "pair": (1, "x")}
    assert redact(config) == config


def test_the_config_itself_is_not_changed():
    config = {"api_key": "x", "inner": {"token": "y"}}
    redact(config)
    assert config == {"api_key": "x", "inner": {"token": "y"}}


def test_logins_in_urls_are_masked():
    assert redact("https://me:pw@host/x?a=b") == "https://***@host/x?a=b"
    assert redact(["git+ssh://git:pw@host/x"]) == ["git+ssh://***@host/x"]


def test_argv():
    argv = ["fit", "--lr=0.1", "--hub.token", "abc", "--api-key=x=y", "--password", "--verbose", "--max_tokens", "9"]
    masked = ["fit", "--lr=0.1", "--hub.token", "***", "--api-key=***", "--password", "--verbose", "--max_tokens", "9"]
    assert redact_argv(argv) == masked


@pytest.mark.parametrize(
    ("file", "line", "masked"),
    [
        ("b/.env", "+export HF_TOKEN=abc # mine", "+export HF_TOKEN=***"),
        ("b/x.yaml", "-  password: hunter2", "-  password: ***"),
        ("b/x.yaml", "+  max_tokens: 512", "+  max_tokens: 512"),
        ("b/x.json", ' "apiKey": "sk-1", "lr": 0.1', ' "apiKey": "***", "lr": 0.1'),
        ("b/x.py", '+api_key: str = "sk-1"', '+api_key: str = "***"'),
        ("b/x.py", "+hub(token='sk-1', lr=0.1)", "+hub(token='***', lr=0.1)"),
        ("b/x.py", "+token = tokenizer(text)", "+token = tokenizer(text)"),
        (
            "b/x.py",
            "+def f(token: Tensor, password: str | None = None):",
            "+def f(token: Tensor, password: str | None = None):",
        ),
        ("b/x.py", "+url = 'https://me:pw@host/x'", "+url = 'https://***@host/x'"),
    ],
)
def test_secrets_in_a_diff(file, line, masked):
    assert redact_diff(f"--- a\n+++ {file}\n{line}") == f"--- a\n+++ {file}\n{masked}"


def test_a_diff_without_secrets_stays_to_the_letter():
    diff = "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-lr = '0.1'\n+lr = '0.2'\n"
    assert redact_diff(diff) == diff
