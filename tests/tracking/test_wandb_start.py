import pytest

from firstlight.tracking._wandb_start import Start, configured_host, decide, has_credentials, unreachable

HOST = "https://api.example.com"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("machine api.example.com login user password abc", True),
        ("machine other.com login user password abc", False),
        ("machine api.example.com login user", False),
        ("machine api.wandb.ai login user password abc", False),
        ("default login user password abc", True),
        ("this is no netrc file", False),
        ("", False),
    ],
)
def test_netrc(entry, found, tmp_path):
    file = write(tmp_path / "netrc", entry)
    assert has_credentials(HOST, {"NETRC": str(file)}) is found


def test_netrc_of_the_home_folder(no_wandb_account):
    assert not has_credentials(HOST, {})
    write(no_wandb_account / ".netrc", "machine api.example.com login user password abc")
    assert has_credentials(HOST, {})
    assert has_credentials("https://elsewhere", {"WANDB_API_KEY": "abc"})
    assert has_credentials("https://elsewhere", {"WANDB_IDENTITY_TOKEN_FILE": "file"})


def test_a_key_stored_under_the_older_name_of_the_default_host_is_found(tmp_path):
    """wandb looks it up there only for its own default host; elsewhere it would ask."""
    environ = {"NETRC": str(write(tmp_path / "netrc", "machine api.wandb.ai login user password abc"))}
    assert decide(offline=False, default_host=HOST, environ={}, timeout=1.0).reason.startswith("no API key")
    at_default = decide(offline=False, default_host="http://127.0.0.1:1", environ=environ, timeout=5.0)
    assert at_default.reason.startswith("127.0.0.1:1 cannot be reached")
    elsewhere = decide(offline=False, default_host=HOST, environ={**environ, "WANDB_BASE_URL": "http://x"}, timeout=1.0)
    assert elsewhere == Start("offline", "no API key in WANDB_API_KEY or netrc for x")


def test_the_host_comes_from_the_environment_then_the_settings_then_the_default(tmp_path, no_wandb_account):
    assert configured_host({}, HOST) == HOST
    write(no_wandb_account / ".config" / "wandb" / "settings", "[default]\nbase_url = http://mine\n")
    assert configured_host({}, HOST) == "http://mine"
    other = write(tmp_path / "conf" / "settings", "not an ini file")
    assert configured_host({"WANDB_CONFIG_DIR": str(other.parent)}, HOST) == HOST
    assert configured_host({"WANDB_BASE_URL": "http://env"}, HOST) == "http://env"


def test_a_proxy_is_trusted_to_reach_what_we_cannot():
    url = "http://127.0.0.1:1"
    with pytest.MonkeyPatch.context() as environ:
        for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            environ.delenv(name, raising=False)
        assert unreachable(url, 5.0) == "Connection refused"
        environ.setenv("http_proxy", "http://127.0.0.1:2")
        assert unreachable(url, 5.0) == ""
        environ.setenv("no_proxy", "127.0.0.1")
        assert unreachable(url, 5.0) == "Connection refused"


def test_a_name_that_does_not_resolve_is_a_reason():
    assert unreachable("https://no-such-host.invalid", 5.0)
    assert unreachable("https://127.0.0.1:99999", 5.0)
