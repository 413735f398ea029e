"""Secrets: what is one, and that none leaves the process."""

import re
import time
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.config.schema import load
from pipeline.core import secrets
from pipeline.core.errors import ConfigError
from pipeline.core.secrets import expand, is_secret_name, mask, mask_tree, plain_secrets
from pipeline.orchestration import compose

CANARY = "canary-7d1f0c"


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize("name", [
    "hf_token", "HF_TOKEN", "engine.arguments.hf_token", "hfToken", "password", "db-password",
    "DB_PWD",
    "Authorization", "Proxy-Authorization", "X-Api-Key", "apiKey", "AWS_SECRET_ACCESS_KEY",
    "client_secret", "MLFLOW_TRACKING_PASSWORD", "credentials", "cookie", "private_key",
    "api_keys", "API_KEYS", "access_tokens", "auth_tokens", "passwords", "Set-Cookie",
    "Ocp-Apim-Subscription-Key", "AccountKey", "SharedAccessKey", "signing_key", "encryption_key",
    "X-Amz-Signature", "X-Amz-Credential", "sig", "jwt", "connection_string", "passcode",
    "GITLAB_PAT", "session_key", "api_key_2", "HF_TOKEN_1", "refresh_token", "secret_value",
])  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", [
    "max_new_tokens", "eos_token", "engine.arguments.pad_token", "serve.keys_file", "tokenizer",
    "register.name", "key", "monkey", "PWD", "OLDPWD", "author", "secretary", "token_ids",
    "max_tokens", "stop_tokens", "tokens", "primary_key", "signatures", "pattern", "num_keys",
    "add_bos_token", "image_token", "served_tokens_1", "keys", "tokens_per_second",
    "launcher.secrets", "launcher.pull_secrets",
])  # fmt: skip
def test_names_of_others(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("text", [
    f"see https://user:{CANARY}@host/x", f"https://user:p@{CANARY}@host", f"hf_token={CANARY}",
    f"+engine.arguments.hf_token='{CANARY} b'", f'{{"Authorization": "Bearer {CANARY}"}}',
    f"Authorization: Bearer {CANARY}", f"curl -H 'Authorization: Basic {CANARY}' http://host",
    f"serve --api-key {CANARY} --port 1", f"--api-key={CANARY}", f"  password: {CANARY}",
    f"http://host/?api_key={CANARY}&x=1", f"{{'headers': {{'X-Api-Key': '{CANARY}'}}}}",
    f"sent Bearer {CANARY} to it", f"AWS_SECRET_ACCESS_KEY={CANARY}",
    f"https://bucket.s3/x?X-Amz-Date=1&X-Amz-Signature={CANARY}",
    f"https://blob/x?sv=1&sig={CANARY}",
    f"AccountName=x;AccountKey={CANARY};EndpointSuffix=y",
    f"+engine.arguments.api_keys=[{CANARY},b]",
    f'{{"api_keys": ["b", "{CANARY}"]}}',
])  # fmt: skip
def test_secrets_in_text_are_masked(text: str) -> None:
    masked = mask(text)
    assert CANARY not in masked
    assert "***" in masked
    assert mask(masked) == masked


@pytest.mark.parametrize("text", [
    "hf_" + "a" * 34, "sk-proj-" + "a1" * 20, "ghp_" + "A" * 36, "nvapi-" + "x" * 40,
    "AKIA" + "A1" * 8, "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "glpat-" + "a" * 20,
])  # fmt: skip
def test_secrets_of_known_forms_are_masked_anywhere(text: str) -> None:
    assert mask(f"it said {text}, once") == "it said ***, once"


@pytest.mark.parametrize("text", [
    "max_new_tokens=64", "eos_token='</s>'", "hf_token=${oc.env:HF_TOKEN}", "KeyError: 'token'",
    "unexpected token: foo", "ssh://git@host/x", "12:00:01 200 POST /v1/chat/completions 0.31 s",
    "artifacts/build: cosine 0.99", "Bearer ${oc.env:HF_TOKEN}", "password=null", "a@b.c",
])  # fmt: skip
def test_other_text_is_left_alone(text: str) -> None:
    assert mask(text) == text


def test_values_are_masked_wherever_they_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "value-of-variable")
    secrets.remember({"engine": {"arguments": {"password": "value-of-setting"}}})
    secrets.remember_words(["+engine.arguments.api_key=value-of-word", "seed=1"])
    text = "value-of-variable, value-of-setting and value-of-word"
    assert mask(text) == "***, *** and ***"


def test_settings_with_a_secret_are_named() -> None:
    tree = {
        "engine": {
            "arguments": {
                "hf_token": CANARY, "headers": {"Authorization": f"Bearer {CANARY}"},
                "url": f"http://u:{CANARY}@h", "list": [{"password": 12345678}],
                "kept": {"hf_token": "${oc.env:HF_TOKEN}", "api_key": "Bearer ${oc.env:KEY}"},
                "secret": None, "eos_token": "</s>",
            }
        }
    }  # fmt: skip
    names = [name.removeprefix("engine.arguments.") for name, _ in plain_secrets(tree)]
    assert names == ["hf_token", "headers.Authorization", "url", "list.password"]
    masked = mask_tree(tree)["engine"]["arguments"]
    assert CANARY not in repr(masked)
    assert masked["kept"] == tree["engine"]["arguments"]["kept"]
    assert masked["list"] == [{"password": "***"}]


def test_a_reference_is_replaced_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    given = ["engine.arguments.hf_token=${oc.env:HF_TOKEN}", "seed=${oc.env:HARBOR_SEED,3}"]
    tree = compose.compose(given)
    assert tree["engine"]["arguments"] == {"hf_token": "${oc.env:HF_TOKEN}"}
    assert tree["seed"] == "3"  # no secret, so it is resolved as Hydra does
    monkeypatch.setenv("HARBOR_URI", f"https://user:{CANARY}@host")
    of_address = "${oc.env:HARBOR_URI}"  # by its form
    assert compose.compose([f"tracking.uri={of_address}"])["tracking"]["uri"] == of_address
    config = load(compose.compose(given[:1]))
    assert CANARY not in repr(config)
    assert expand(config.engine.arguments) == {"hf_token": CANARY}
    assert expand(["a ${oc.env:NO_SUCH,b}", 1]) == ["a b", 1]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="refers to the environment variable HF_TOKEN: set it"):
        expand(config.engine.arguments)


@pytest.mark.parametrize("given", [
    f"engine.arguments.hf_token={CANARY}", f"tracking.uri=https://user:{CANARY}@host",
    f"engine.arguments.headers={{Authorization: Bearer {CANARY}}}",
])  # fmt: skip
def test_a_secret_on_the_command_line_is_refused_where_it_would_be_written(
    given: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for stage in ("build", "all"):
        assert main([f"stage={stage}", given, f"artifacts={tmp_path}/made"]) == 2
        said = capsys.readouterr().err
        assert CANARY not in said
        assert re.search(rf"holds a secret, which stage={stage} .*\$\{{oc.env:\w+\}}'", said)
    assert not list(tmp_path.iterdir())
    assert main(["stage=config", given]) == 0
    shown = capsys.readouterr().out
    assert CANARY not in shown
    assert "***" in yaml.safe_dump(yaml.safe_load(shown))
    assert main(["--cfg", "job", given]) == 0
    assert CANARY not in capsys.readouterr().out


def test_messages_and_tracebacks_hold_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([f"engine.arguments.hf_token={CANARY}", "stage=prepare", "sed=1"]) == 2
    assert main([f"engine.arguments.hf_token=[{CANARY}", "stage=prepare"]) == 2

    def fail(*_: object) -> None:
        raise RuntimeError(f"the server at https://user:{CANARY}@host said no to {CANARY}")

    monkeypatch.setattr(compose, "load_command", fail)
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    assert main(["stage=prepare"]) == 1
    captured = capsys.readouterr()
    assert CANARY not in captured.out + captured.err
    assert "Traceback" in captured.err


@pytest.mark.parametrize("unit", ["x", "-", "a.", "--a", "a=", "://", "'", '"a":', "Bearer "])
def test_a_long_text_is_masked_in_the_time_of_reading_it(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    begin = time.process_time()
    mask(text)
    assert time.process_time() - begin < 2
