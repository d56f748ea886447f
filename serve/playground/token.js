// Asks for the token of the service, when a request was refused without it.

import { useEffect, useRef, useState } from './vendor/hooks.mjs';
import { onTokenNeeded } from './api.js';
import { html } from './ui.js';

export function TokenDialog() {
  const dialog = useRef();
  const answer = useRef(null);
  const [wasWrong, setWasWrong] = useState(false);
  useEffect(() => {
    onTokenNeeded((wrong) => {
      setWasWrong(wrong);
      dialog.current.showModal();
      return new Promise((resolve) => (answer.current = resolve));
    });
  }, []);
  const reply = (token) => {
    answer.current?.(token);
    answer.current = null;
  };
  const onSubmit = (event) => {
    event.preventDefault();
    const { value } = event.target.elements.token;
    event.target.reset();
    reply(value.trim());
    dialog.current.close();
  };
  return html`<dialog ref=${dialog} class="token-dialog" aria-labelledby="token-title" onClose=${() => reply(null)}>
    <form onSubmit=${onSubmit}>
      <h2 id="token-title">This service needs a token</h2>
      <p class="muted">It is kept until this tab is closed, and sent only to this service.</p>
      <label class="label" for="token">Token</label>
      <input id="token" name="token" type="password" required autocomplete="off" autofocus aria-describedby=${wasWrong ? 'token-error' : undefined} />
      ${wasWrong && html`<p class="field-error" id="token-error" role="alert">The service did not accept this token.</p>`}
      <div class="dialog-actions"><button class="button primary">Continue</button></div>
    </form>
  </dialog>`;
}
