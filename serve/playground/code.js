// The call on screen as code.

import { useState } from './vendor/hooks.mjs';
import { baseUrl, hasToken, localUrl } from './api.js';
import { LANGUAGES } from './codegen.js';
import { copyText, html, Tabs } from './ui.js';

/** `input` is that of the prediction on screen with its seed, or of the form. */
export function Code({ model, input, defaults, isPrediction, needsUpload }) {
  const [language, setLanguage] = useState('curl');
  const [copied, setCopied] = useState(null);
  const [, , generate] = LANGUAGES.find(([id]) => id === language);
  const files = ['image', 'mask'].filter((name) => input[name]).map((name) => [name, localUrl(input[name])]);
  const call = { ...input, ...Object.fromEntries(files) };
  const code = generate({ model, input: call, defaults, url: baseUrl, hasToken: hasToken() });
  const copy = async () => setCopied((await copyText(code)) ? code : null);
  return html`<section class="code" aria-label="As code">
    <div class="code-head">
      <${Tabs} label="Client" panel="code-text" selected=${language} onSelect=${setLanguage}
        tabs=${LANGUAGES.map(([id, name]) => [id, name])} />
      <button type="button" class="button" data-test="copy-code" onClick=${copy}>${copied === code ? 'Copied' : 'Copy'}</button>
    </div>
    <pre id="code-text" role="tabpanel" tabindex="0" data-test="code"><code>${code}</code></pre>
    <p class="hint">
      ${isPrediction
        ? 'This call gives the same images as the prediction on screen.'
        : 'This is the call of the form. With a seed, it gives the same images each time.'}
      ${needsUpload && ' Generate once to upload the input image: its address then appears here.'}
      ${hasToken() && ' Set FLUX_SERVE_TOKEN to the token of the service.'}
    </p>
  </section>`;
}
