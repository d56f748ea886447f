// A message above the result: an error of the last request, with the time of the next try if there is one.

import { useEffect, useState } from './vendor/hooks.mjs';
import { ApiError } from './api.js';
import { html, IconButton } from './ui.js';

/** What is shown for an error; `retryAt` is in milliseconds since 1970, or null. */
export function noticeOf(error) {
  if (!(error instanceof ApiError)) {
    const unreachable = error instanceof TypeError;
    return { text: unreachable ? 'The service cannot be reached.' : error.message, retryAt: unreachable ? Date.now() : null };
  }
  const retryAt = [429, 503].includes(error.status) ? Date.now() + error.retryAfterS * 1000 : null;
  return { text: error.message, retryAt };
}

export function Notice({ notice, onRetry, onClose }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    setNow(Date.now());
    if (notice.retryAt === null) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 250);
    return () => clearInterval(timer);
  }, [notice]);
  const waitS = notice.retryAt === null ? 0 : Math.max(0, Math.ceil((notice.retryAt - now) / 1000));
  return html`<div class="notice" role="alert" data-test="notice">
    <span>${notice.text}</span>
    ${notice.retryAt !== null &&
    html`<button type="button" class="button" disabled=${waitS > 0} data-test="retry" onClick=${onRetry}>
      ${waitS > 0 ? `Try again in ${waitS} s` : 'Try again'}
    </button>`}
    <${IconButton} icon="close" label="Close the message" onClick=${onClose} />
  </div>`;
}
