// The past predictions of this browser.

import { useState } from './vendor/hooks.mjs';
import { forgetAll, useHistory } from './history.js';
import { hasEnded, usePrediction } from './predictions.js';
import { imageCount, useImageUrl } from './stage.js';
import { html } from './ui.js';

const PAGE = 18;

export function Gallery({ selected, onSelect }) {
  const ids = useHistory();
  const [shown, setShown] = useState(PAGE);
  if (ids.length === 0) return null;
  return html`<section class="gallery" aria-labelledby="gallery-title">
    <div class="gallery-head">
      <h2 id="gallery-title">Gallery</h2>
      <span class="muted">kept in this browser</span>
      <span class="spacer"></span>
      <button type="button" class="button quiet" onClick=${() => confirm('Forget all predictions in this browser?') && forgetAll()}>Clear</button>
    </div>
    <ul>${ids.slice(0, shown).map((id) => html`<${Entry} key=${id} id=${id} selected=${id === selected} onSelect=${onSelect} />`)}</ul>
    ${ids.length > shown &&
    html`<button type="button" class="button" onClick=${() => setShown(shown + PAGE)}>Show more</button>`}
  </section>`;
}

function Entry({ id, selected, onSelect }) {
  const state = usePrediction(id);
  const { record } = state;
  const src = useImageUrl(state.outputs.find(Boolean));
  if (state.missing) return null;
  const count = imageCount(record);
  const label = record ? `${record.input.prompt ?? ''} (${record.status}${count > 1 ? `, ${count} images` : ''})` : 'Loading';
  return html`<li>
    <button type="button" class=${`entry is-${record?.status ?? 'loading'}`} aria-current=${selected ? 'true' : undefined}
      aria-label=${label} title=${record?.input.prompt} data-test="entry" onClick=${() => onSelect(id)}>
      ${src ? html`<img src=${src} alt="" loading="lazy" />` : html`<span aria-hidden="true">${record && hasEnded(state) ? record.status : '…'}</span>`}
      ${count > 1 && html`<span class="badge" aria-hidden="true">${count}</span>`}
    </button>
  </li>`;
}
