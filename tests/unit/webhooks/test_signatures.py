"""Signatures of webhooks, with the test vector and the verification of Replicate's official client."""

import pytest
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from serve.webhooks.signatures import new_secret, signature_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
BODY = b'{"test": 2432232314}'


def is_valid(headers: dict[str, str], body: bytes, secret: str) -> bool:
    try:
        Webhooks.validate(headers=headers, body=body.decode(), secret=WebhookSigningSecret(key=secret))
    except InvalidSignatureError:
        return False
    return True


def test_signature_is_that_of_replicates_test_vector() -> None:
    assert signature_headers([SECRET], MESSAGE_ID, 1614265330, BODY) == {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("position", [0, 1])
def test_receiver_with_either_of_two_secrets_accepts(position: int) -> None:
    secrets = [new_secret(), new_secret()]
    headers = signature_headers(secrets, MESSAGE_ID, 1614265330, BODY)
    assert is_valid(headers, BODY, secrets[position])
    assert not is_valid(headers, BODY, new_secret())


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp", "body"])
def test_changed_message_is_rejected(changed: str) -> None:
    headers, body = signature_headers([SECRET], MESSAGE_ID, 1614265330, BODY), BODY
    if changed == "body":
        body += b" "
    else:
        headers[changed] += "0"
    assert not is_valid(headers, body, SECRET)


def test_new_secrets_differ_and_have_one_underscore() -> None:
    secrets = {new_secret() for _ in range(200)}
    assert len(secrets) == 200
    assert all(secret.count("_") == 1 and "-" not in secret for secret in secrets)
